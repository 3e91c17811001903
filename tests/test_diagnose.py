"""Interference of a model on a task: the algebra, the measurement, and the command."""

import importlib.util
import json
import math
import shutil
import sys

import pytest
import torch

import eval.diagnosis.analysis
import eval.diagnosis.pictures as diagnosis_pictures
import eval.diagnosis.report as diagnosis_report
import trainers.commands.diagnose as diagnosis
import trainers.engine.hosts
import trainers.engine.launcher
from eval.diagnosis.analysis import analyse, cosines, interval, resampled, sign_change
from eval.files import read_lines
from eval.policy.logprobs import answer_batch, completion_logprobs, log_softmax
from eval.policy.policy import load_policy
from eval.rollout.rollout import Decoding
from eval.rollout.sample import sample
from eval.scores.folder import BadFolder
from surgery import geometry as gram
from surgery.estimators import ESTIMATORS
from surgery.interference import (
    EVERYTHING,
    PASS_1,
    WIDEST,
    FeatureSums,
    ProbeSums,
    advantage_table,
    cross,
    filtered,
    influence,
    members,
    most_negative,
    product,
    products,
    shells,
)
from surgery.objectives import pass_at_k_weight
from tests.commands import ROOT, no_file_beyond, run
from tests.fakes import Alone
from trainers.config.load import load_config
from trainers.measure import ghost

DIAGNOSE = str(ROOT / "launch" / "diagnose.py")
CONFIG = str(ROOT / "configs" / "passk.yaml")
SMALL = ["diagnose.prompts=100", "diagnose.samples=6"]
N = 12


@pytest.fixture(autouse=True)
def one_thread():
    """Batches are small: a second thread mostly waits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_variants_of_a_name_have_folders_of_their_own(tmp_path, monkeypatch):
    places = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(diagnosis, "Folder", lambda out, config: places.append(str(out)) or stop())
    spec = importlib.util.spec_from_file_location("diagnose_command", DIAGNOSE)
    command = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(command)

    def stop():
        raise BadFolder("enough")

    for name in ("pcgrad", "chain/pcgrad"):
        path = str(ROOT / "configs" / f"{name}.yaml")
        monkeypatch.setattr(sys, "argv", ["diagnose.py", "--config", path])
        assert command.main() == 2
    assert places == ["runs/diagnosis/pcgrad", "runs/diagnosis/chain/pcgrad"]


# -- algebra ------------------------------------------------------------------------------------


def test_thresholds_are_strict():
    """By hand at n = 20, where rates fall on the thresholds."""
    kind = shells(torch.arange(21), 20).tolist()
    assert kind == [0, 1, 2, *[3] * 14, 4, 5, 6, 6]
    assert filtered(0.80, 0.15) == WIDEST == {0, 1, 2, 4, 5, 6}
    assert filtered(0.90, 0.05) == {0, 6} and filtered(0.85, 0.10) == {0, 1, 5, 6}


@pytest.mark.parametrize("level", [("plugin", 4), ("loo", 4), ("loo", 12), PASS_1])
def test_an_advantage_knows_the_verdict_and_the_count_alone(level):
    verdicts = (torch.rand(40, N, generator=torch.Generator().manual_seed(0)) < 0.4).double()
    expected = ESTIMATORS[level[0]](verdicts, level[1])
    table = advantage_table(level, N)[verdicts.sum(1).long()]
    assert torch.equal(torch.where(verdicts > 0, table[:, :1], table[:, 1:]), expected)


def population(prompts=60, width=6, seed=0):
    """(verdicts, features, sums over right and wrong answers) of a random population."""
    generator = torch.Generator().manual_seed(seed)
    p = torch.where(torch.rand(prompts, 1, generator=generator) < 0.6, 0.93, 0.05)
    right = torch.rand(prompts, N, generator=generator) < p
    u = torch.randn(prompts, N, width, generator=generator, dtype=torch.float64)
    both = torch.stack([right, ~right], 1).double()
    return right.double(), u, torch.einsum("isj,ijd->isd", both, u)


@pytest.mark.parametrize("group", [EVERYTHING, WIDEST, filtered(0.90, 0.05)])
def test_products_of_features_against_those_of_completions(group):
    right, u, sums = population()
    x = FeatureSums(right.sum(1).long(), N, sums)
    chosen = members(x, group)
    levels = [PASS_1, ("plugin", 5), ("loo", 5)]
    g = {
        level: gram.prompt_gradients(
            ESTIMATORS[level[0]](right[chosen], level[1]), u[chosen].flatten(0, 1)
        )
        for level in levels
    }
    assert torch.allclose(cross(x, PASS_1, PASS_1, group), gram.agreements(g[PASS_1]))
    for level in levels:
        expected = gram.products(g[level], g[PASS_1])
        assert product(x, level, PASS_1, group) == pytest.approx(expected.dot)
        assert product(x, level, level, group) == pytest.approx(expected.norm_k)
        naive = gram.products(g[level], g[PASS_1], "naive").dot
        assert x.naive(level, PASS_1, group) == pytest.approx(naive)
        phi = influence(x, level, PASS_1, group)
        assert float(phi.mean()) / 2 == pytest.approx(expected.dot)
    several = products(x, levels, PASS_1, group)
    assert several == pytest.approx([product(x, level, PASS_1, group) for level in levels])


def test_products_of_probes_against_double_loops():
    """Halves, and filters as sums of shells; a level measured over one filter alone is refused over
    another.
    """
    right, _, sums = population()
    counts, halves = right.sum(1).long(), torch.arange(60) % 2
    features = FeatureSums(counts, N, sums)
    kind, probes = shells(counts, N), {}
    for level, group in diagnosis.requests(4, N):
        g = features.gradients(level) * torch.isin(kind, torch.tensor(sorted(group)))[:, None]
        other = torch.stack([g[halves == 1].sum(0), g[halves == 0].sum(0)])[halves]
        probes[level, group] = torch.einsum("isd,id->is", sums, other)
    x = ProbeSums(counts, N, halves, probes)
    a, b = ("plugin", 4), PASS_1
    for group in (EVERYTHING, WIDEST, filtered(0.85, 0.10)):
        inside = members(x, group)
        g_a, g_b = features.gradients(a), features.gradients(b)
        sides = [(inside & (halves == s)).nonzero().squeeze(1).tolist() for s in (0, 1)]
        pairs = [(i, j) for i in sides[0] for j in sides[1]]
        expected = sum(float(g_a[i] @ g_b[j] + g_a[j] @ g_b[i]) for i, j in pairs) / 2 / len(pairs)
        assert product(x, a, b, group) == pytest.approx(expected)
        assert float(influence(x, a, b, group).mean()) / 2 == pytest.approx(expected)
    assert product(x, ("plugin", 2), b, WIDEST) == pytest.approx(
        product(x, b, ("plugin", 2), WIDEST)
    )
    with pytest.raises(KeyError, match="not measured"):
        cross(x, b, ("plugin", 2), EVERYTHING)


def test_sign_changes():
    assert sign_change([1, 2, 4], [3.0, 1.0, -1.0]) == 3
    assert sign_change([1, 2], [-1.0, 1.0]) == 1 and sign_change([1, 2], [1.0, 2.0]) is None


def test_the_most_negative_pairs():
    g_a, g_b = torch.randn(2, 300, 4, generator=torch.Generator().manual_seed(0)).double()
    whole = (g_a @ g_b.T).fill_diagonal_(torch.inf)
    i, j, value = most_negative(g_a, g_b, 3)[0]
    assert value == float(whole.min()) == float(whole[i, j])
    found = most_negative(g_a, g_b, 2)
    assert len([x for x in found if x[0] == 7]) == 2 and all(x[0] != x[1] for x in found)


# -- how sure -----------------------------------------------------------------------------------

EASY_G, HARD_G = torch.tensor([1.0, 0.2, 0.0]).double(), torch.tensor([-0.6, 0.8, 0.0]).double()


def two_families(prompts, n, seed):
    """Prompts of p = .88 and p = .12 under a logistic policy: u = (f - p) x_i, so grad p = p (1-p)
    x_i.
    """
    generator = torch.Generator().manual_seed(seed)
    easy = torch.rand(prompts, generator=generator) < 0.7
    p = torch.where(easy, 0.88, 0.12).double()
    x = torch.where(easy[:, None], EASY_G, HARD_G)
    c = (torch.rand(prompts, n, generator=generator) < p[:, None]).sum(1)
    sums = torch.stack([c * (1 - p), -(n - c) * p], 1)[..., None] * x[:, None]
    return FeatureSums(c, n, sums)


def exact_product(k):
    def gradient(m):
        w = pass_at_k_weight(torch.tensor([0.88, 0.12]), m) * 0.88 * 0.12
        return 0.7 * w[0] * EASY_G + 0.3 * w[1] * HARD_G

    return float(gradient(k) @ gradient(1))


def test_intervals_cover_and_products_are_unbiased():
    """By the unbiased estimator, over 200 draws of prompts and answers; 88 % is three standard
    errors below 95 %.
    """
    truth, held, values = exact_product(4), 0, []
    for seed in range(200):
        phi = influence(two_families(150, 8, seed), ("loo", 4), PASS_1, EVERYTHING)
        found = interval(phi)
        values.append(found["value"])
        held += found["low"] < truth < found["high"]
    spread = torch.tensor(values)
    assert abs(float(spread.mean()) - truth) < 4 * float(spread.std()) / math.sqrt(200)
    assert 176 <= held < 200  # so wide that nothing lies outside would be no use


def test_a_prompt_drawn_twice_does_not_meet_itself():
    """Against the bootstrap that forms all pairs anew, but for those of a prompt with its copy;
    with those pairs it is pushed upwards by the self-term.
    """
    x, level = two_families(40, 8, 3), ("loo", 4)
    g_a, g_b = x.gradients(level), x.gradients(PASS_1)
    table = g_a @ g_b.T
    generator = torch.Generator().manual_seed(1)
    ours = resampled(influence(x, level, PASS_1, EVERYTHING))
    drawn = [torch.randint(40, (40,), generator=generator).bincount(minlength=40) for _ in ours]
    m = torch.stack(drawn).double()
    whole, copies = ((m @ table) * m).sum(1), (m * m) @ table.diagonal()
    without = (whole - copies) / (40**2 - (m * m).sum(1))
    met = (whole - m @ table.diagonal()) / (40 * 39)
    value, error = product(x, level, PASS_1, EVERYTHING), float(without.std()) / math.sqrt(len(m))
    assert abs(float(ours.mean()) - value) < 4 * error
    assert abs(float(without.mean()) - value) < 4 * error
    assert float(met.mean()) - value > 10 * error
    ends = torch.tensor([0.025, 0.975]).double()
    width = float(without.quantile(ends[1]) - without.quantile(ends[0]))
    assert torch.allclose(ours.quantile(ends), without.quantile(ends), atol=0.12 * width)


def test_cosines():
    """Known directions, and nothing where an unbiased square is negative."""
    x = two_families(4000, 8, 0)
    found = cosines(x, [PASS_1, ("loo", 8)], EVERYTHING)
    squares = [product(x, level, level, EVERYTHING) for level in (PASS_1, ("loo", 8))]
    by_hand = product(x, ("loo", 8), PASS_1, EVERYTHING) / math.sqrt(squares[0] * squares[1])
    assert found["value"][0][1] == pytest.approx(by_hand)
    assert found["low"][0][1] <= found["value"][0][1] <= found["high"][0][1]
    one, other = torch.tensor([[1.0, 0.0], [-1.0, 0.0]]).double()
    sums = torch.stack([one, -one, other, -other]).view(2, 2, 2)
    opposed = FeatureSums(torch.tensor([6, 6]), N, sums)  # their product is all that is left
    assert cosines(opposed, [PASS_1], EVERYTHING)["value"] == [[None]]


# -- one distribution ---------------------------------------------------------------------------


def test_the_score_of_what_is_sampled_has_mean_zero():
    """By enumeration; the score without the cut has not."""
    logits = torch.tensor([2.0, 1.0, 0.5, -1.0], dtype=torch.float64, requires_grad=True)
    logp = log_softmax(logits, 0.7, 0.9)
    q = logp.detach().exp()
    assert (q > 0).tolist() == [True, True, False, False] and float(q.sum()) == pytest.approx(1)
    ratio = math.exp((2.0 - 1.0) / 0.7)
    assert float(q[0] / q[1]) == pytest.approx(ratio)

    def mean_score(logp):
        rows = [torch.autograd.grad(x, logits, retain_graph=True)[0] for x in logp]
        return sum(q[i] * row for i, row in enumerate(rows) if q[i] > 0)

    assert float(mean_score(logp).abs().max()) < 1e-12
    assert float(mean_score(log_softmax(logits, 0.7)).abs().max()) > 1e-2
    kept = log_softmax(logits, 0.7, 0.9, torch.tensor(2))  # a drawn token is inside
    assert kept.isfinite().tolist() == [True, True, True, False]


def test_features_and_ghost_are_of_what_is_sampled(base, twin):
    """The sampler's features, and a probe, against autograd of the log-probability under top_p."""
    prompts = [x.prompt for x in twin.training(0, 0, 6)]
    rollout = sample(base, prompts, 4, Decoding(4, 0.9, 0.9), 0, features=True)
    model = base.model.double()
    answers = [rollout.texts[4 * i] for i in range(6)]
    batch = answer_batch(base, prompts, answers)
    logp = completion_logprobs(model, batch, 0.9, 0.9).sum(1)
    assert torch.allclose(logp.float(), rollout.logprobs[::4], atol=1e-4)
    torch.manual_seed(0)
    v = {name: torch.randn_like(p) for name, p in model.named_parameters()}
    found = ghost.probe(model, batch, v, 0.9, 0.9)
    for row in range(6):
        weight = torch.zeros(6).double()
        weight[row] = 1
        g = ghost.gradient(model, [batch], [weight], 0.9, None, 0.9)
        assert float(found[row]) == pytest.approx(sum(float((g[n] * v[n]).sum()) for n in v))
    seen = []
    hook = model.get_output_embeddings().register_forward_pre_hook(lambda m, x: seen.append(x[0]))
    logp = completion_logprobs(model, batch, 0.9, 0.9).sum(1)
    hook.remove()
    (u,) = torch.autograd.grad(logp.sum(), seen)
    assert torch.allclose(u.sum(1).float(), rollout.features[::4], atol=1e-4)


# -- measuring ----------------------------------------------------------------------------------


@pytest.fixture
def alone(monkeypatch):
    monkeypatch.setattr(diagnosis, "Ranks", Alone)
    for module in (diagnosis, trainers.engine.hosts):
        monkeypatch.setattr(module, "share", lambda x: x)
    monkeypatch.setattr(trainers.engine.hosts, "once_a_host", lambda make: make())
    monkeypatch.setattr(trainers.engine.launcher, "start_ranks", lambda threads: None)


def measured(path, *options):
    config = load_config(CONFIG, list(options))
    folder = diagnosis.Folder(path, config)
    found = diagnosis.Diagnosis(config, folder)
    measures = found.run()
    folder.close()
    return found, measures


def test_ghost_against_every_prompts_own_gradient(tmp_path, alone, few, base_path):
    """Sums over completions with all their parameters' gradients, at a temperature and a top_p."""
    options = ["diagnose.prompts=40", "diagnose.samples=6", "diagnose.top_p=0.98"]
    found, measures = measured(tmp_path / "out", *options)
    records, x = found.records(), measures["ghost"]
    gradients = torch.zeros(40, 2, sum(p.numel() for p in found.policy.model.parameters()))
    for i, record in enumerate(records):
        rollout, right = diagnosis._rollout([record])
        for side, kept in enumerate((right, ~right)):
            rows = diagnosis.micro_batches(rollout, kept.double(), 10**6, 0, "cpu")
            g = ghost.gradient(found.policy.model, *rows, 0.7, None, 0.98)
            gradients[i, side] = torch.cat([y.flatten() for y in g.values()])
    whole = FeatureSums(x.counts, 6, gradients)
    for level in (PASS_1, ("plugin", 6), ("loo", 6)):
        g, halves = whole.gradients(level), x.halves
        other = torch.stack([g[halves == 1].mean(0), g[halves == 0].mean(0)])[halves]
        expected = torch.einsum("isd,id->is", gradients.double(), other)
        mixed = (x.counts > 0) & (x.counts < 6)  # the others meet the advantage 0
        received = x.received(level, EVERYTHING)
        scale = float(expected[mixed].abs().max())
        assert torch.allclose(received[mixed], expected[mixed], atol=1e-4 * scale)


def exact(twin, path, k, temperature=1.0, top_p=1.0):
    """<grad J_k, grad J_1> over all parameters: the population's p under the distribution that is
    sampled, by autograd.
    """
    policy = load_policy(path)
    batch = answer_batch(policy, *zip(*((x.prompt, x.gold) for x in twin.population), strict=True))
    columns = batch.completion_mask.shape[1]
    logits = policy.model(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        position_ids=batch.position_ids,
    ).logits[:, -columns - 1 : -1]
    logp = log_softmax(logits, temperature, top_p)
    chosen = logp.gather(-1, batch.input_ids[:, -columns:, None]).squeeze(-1)
    p = chosen.where(batch.completion_mask, 0.0).sum(1).exp().double()
    parameters = list(policy.model.parameters())
    j = [twin.shares @ (1 - (1 - p) ** m) for m in (k, 1)]  # p = 1 has no log1p(-p)
    g = [
        torch.cat([y.flatten() for y in torch.autograd.grad(x, parameters, retain_graph=True)])
        for x in j
    ]
    return float(g[0].double() @ g[1].double())


DOCUMENTED = ["diagnose.k=8", "diagnose.prompts=1600", "diagnose.temperature=1", "diagnose.top_p=1"]


@pytest.mark.slow
@pytest.mark.parametrize("cut", [False, True], ids=["as trained", "T .7, top_p .95"])
def test_the_exact_product_lies_inside_the_interval(
    tmp_path, alone, monkeypatch, twin, base_path, cut
):
    """Over 12 seeds of prompts and answers, at the settings that the README documents, and at those
    of the paper: at most three intervals miss (at 95 %, four have a chance of .002).
    """
    whole = [(level, EVERYTHING) for level in (PASS_1, ("loo", 8))]
    monkeypatch.setattr(diagnosis, "requests", lambda k, n: whole)
    decoding = ["diagnose.temperature=0.7", "diagnose.top_p=0.95"] if cut else DOCUMENTED[2:]
    truth = exact(twin, base_path, 8, *((0.7, 0.95) if cut else ()))
    held, widths = 0, []
    for seed in range(12):
        options = [f"diagnose.seed={seed}", *DOCUMENTED[:2], *decoding]
        _, measures = measured(tmp_path / f"{seed}", *options)
        found = interval(influence(measures["ghost"], ("loo", 8), PASS_1, EVERYTHING))
        held += found["low"] < truth < found["high"]
        widths.append((found["high"] - found["low"]) / 2 / abs(truth))
        print(seed, truth, found, flush=True)
        shutil.rmtree(tmp_path / f"{seed}")
    print(f"held {held} of 12, half-widths {min(widths):.3f} to {max(widths):.3f}")
    assert truth < 0 and held >= 9
    if not cut:
        assert max(widths) < 0.2


# -- the command --------------------------------------------------------------------------------


@pytest.fixture
def command(alone, tmp_path, monkeypatch, capsys):
    """The command in this process: starting one takes seconds."""
    spec = importlib.util.spec_from_file_location("diagnose", DIAGNOSE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.chdir(tmp_path)

    def ask(*options):
        monkeypatch.setattr(sys, "argv", [DIAGNOSE, "--config", CONFIG, *options])
        code = module.main()
        said = capsys.readouterr()
        return code, said.out, said.err

    return ask


@pytest.fixture
def few(monkeypatch):
    """Three directions of the two dozen."""
    levels = [PASS_1, ("plugin", 6), ("loo", 6)]
    monkeypatch.setattr(diagnosis, "requests", lambda k, n: [(x, EVERYTHING) for x in levels])


@pytest.fixture
def unwritten(few, monkeypatch):
    """What is measured, without the report, which takes longer."""
    monkeypatch.setattr(diagnosis_report, "write", lambda out, measures, *_: " ".join(measures))


def answers(folder):
    found = json.loads((folder / "diagnosis.json").read_text())
    return found, read_lines(folder / "prompts.jsonl")


def test_what_the_command_leaves(command, tmp_path, base_path, monkeypatch):
    monkeypatch.setattr(eval.diagnosis.analysis, "RESAMPLES", 200)
    code, out, err = command(*SMALL, "--out", "a")
    assert code == 0, err
    found, prompts = answers(tmp_path / "a")
    ghost_rows = found["measures"]["ghost"]["groups"]
    assert len(prompts) == 100 and len(ghost_rows) == 10 and found["k"] == found["n"] == 6
    assert found["easy"] + found["hard"] <= 100 and found["proxy"][0]["prompts"] == "all"
    pair = found["pairs"][0]
    assert pair["product"] < 0 and pair["raised"]["id"] != pair["lowered"]["id"]
    names = ["agreement", "weights", "thresholds", "kernel", "cosines", "against_k", "proxy"]
    assert all((tmp_path / "a" / f"{name}.png").stat().st_size > 5000 for name in names)
    text = (tmp_path / "a" / "diagnosis.md").read_text()
    assert text.count("](") == len(names) and pair["raised"]["prompt"] in out
    assert len(list((tmp_path / "a").glob("events.out.*"))) == 1

    # given again, nothing is measured: the model is not even loaded
    monkeypatch.setattr(diagnosis, "load_policy", None)
    monkeypatch.setattr(diagnosis_pictures, "pictures", lambda *_: {})
    assert command(*SMALL, "--out", "a")[:2] == (0, out)
    assert answers(tmp_path / "a") == (found, prompts)

    # what was sampled under other settings is not gone on with, and every key is named
    code, _, err = command(*SMALL, "diagnose.seed=1", "diagnose.top_p=0.9", "--out", "a")
    assert code == 2 and len(err.strip().splitlines()) == 2
    assert "diagnose.seed = 1 (was 0)" in err and "diagnose.top_p = 0.9 (was 0.95)" in err


def test_cut_short_it_goes_on(command, unwritten, tmp_path, base_path, monkeypatch):
    """Stopped while sampling, then among the directions; a measure added later uses the samples."""
    assert command(*SMALL, "--out", "whole")[0] == 0

    def stop_at(name, calls):
        kind, count = diagnosis.Folder, iter(range(calls))
        original = getattr(kind, name)

        def write(self, *arguments):
            if next(count, None) is None:
                raise KeyboardInterrupt
            original(self, *arguments)

        monkeypatch.setattr(kind, name, write)
        code, _, err = command(*SMALL, "--out", "part")
        monkeypatch.setattr(kind, name, original)
        assert code == 130 and "goes on" in err

    stop_at("write_part", 1)
    assert len(list((tmp_path / "part" / "parts").glob("*.json"))) == 1
    stop_at("write_probe", 1)
    monkeypatch.setattr(diagnosis, "sample", None)  # nor is anything sampled again
    assert len(list((tmp_path / "part" / "probes").iterdir())) == 1
    assert command(*SMALL, "--out", "part")[0] == 0
    files = [x.relative_to(tmp_path / "whole") for x in (tmp_path / "whole").glob("p*/*")]
    assert len(files) == 2 * 2 + 3
    for name in files:
        assert (tmp_path / "part" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    code, out, _ = command(*SMALL, "diagnose.measure=last_layer", "--out", "part")
    assert code == 0 and out.startswith("last_layer\n")


def test_on_a_full_disk(command, unwritten, base_path):
    """The features are written by safetensors, which has words of its own for it."""
    ask = [*SMALL, "diagnose.measure=last_layer", "--out", "a"]
    with no_file_beyond(4_000):
        code, _, err = command(*ask)
    said = "a: [Errno 27] File too large: 'a'; once it can be written, the same command goes on"
    assert code == 1 and err.splitlines()[-1] == said
    assert command(*ask)[0] == 0


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("diagnose.k=33", "diagnose.k = 33: needs as many answers, and diagnose.samples = 32"),
        ("diagnose.top_p=0", "diagnose.top_p = 0.0: must be above 0"),
        ("diagnose.temperature=0", "diagnose.temperature = 0.0: must be above 0"),
        ("diagnose.measure=gost", "diagnose.measure = gost: must be one of ghost, last_layer"),
        ("diagnose.promts=3", "diagnose.promts = 3: unknown key; the nearest is diagnose.prompts"),
        ("model.path=./gone", "model.path = ./gone: no model folder"),
        ("--out=full", "--out = full: holds files already"),
    ],
)
def test_bad_input(command, tmp_path, monkeypatch, option, said):
    """One line, before any model is loaded."""
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("")
    monkeypatch.setattr(diagnosis, "load_policy", None)
    code, _, err = command(option)
    assert code == 2 and said in err and len(err.strip().splitlines()) == 1
    assert [x.name for x in tmp_path.iterdir()] == ["full"]


def test_a_verifier_that_cannot_judge(command, tmp_path, base_path, monkeypatch):
    """One line, before any model is loaded."""
    (tmp_path / "mine.py").write_text("def judge(answer):\n    return True\n")
    monkeypatch.setattr(diagnosis, "load_policy", None)
    code, _, err = command("task.verifier=mine.py:judge", "--out=a")
    assert code == 2 and len(err.splitlines()) == 1
    assert err.startswith("task.verifier = mine.py:judge: TypeError: judge() takes 1 positional")


def test_a_layer_that_ghost_cannot_measure(command, tmp_path, base_path, monkeypatch):
    def refuse(*_):
        raise ghost.Unsupported("model.odd (Odd): not affine in its own parameters")

    monkeypatch.setattr(ghost, "probe", refuse)
    code, _, err = command("diagnose.prompts=60", "diagnose.samples=4", "--out", "a")
    remedy = "not affine in its own parameters; set diagnose.measure=last_layer"
    assert code == 2 and f"diagnose.measure = ghost: model.odd (Odd): {remedy}" in err


def test_too_few_to_compare(command, tmp_path, base_path):
    """Four prompts: no filter has enough, and the report says what it can."""
    code, out, err = command("diagnose.prompts=4", "diagnose.samples=4", "--out", "a")
    assert code == 0, err
    assert "| –" in out


def test_a_run_goes_on_under_other_diagnoses(tmp_path):
    """The section changes nothing in training: runs from before it was there resume."""
    from trainers.config.load import differences, save_config

    config = load_config(CONFIG)
    save_config(config, tmp_path / "config.yaml")
    assert differences(load_config(CONFIG, ["diagnose.k=4"]), tmp_path / "config.yaml") == []


@pytest.mark.slow
def test_two_ranks_do_what_one_does(tmp_path, base_path):
    """Under the launcher, as a user gives it."""
    for ranks, name in ((0, "one"), (2, "two")):
        options = ["--config", CONFIG, *SMALL, "--out", name]
        done = run(DIAGNOSE, *options, cwd=tmp_path, ranks=ranks)
        assert done.returncode == 0, done.stdout + done.stderr
    (one, prompts), (two, again) = (answers(tmp_path / name) for name in ("one", "two"))
    for a, b in zip(prompts, again, strict=True):
        assert (a["id"], a["responses"]) == (b["id"], b["responses"])
        for measure, value in a["agreement"].items():
            assert b["agreement"][measure] == pytest.approx(value, rel=1e-3, abs=1e-4)
    for measure in ("ghost", "last_layer"):
        for a, b in zip(*(x["measures"][measure]["groups"] for x in (one, two)), strict=True):
            assert b["plugin"]["value"] == pytest.approx(a["plugin"]["value"], rel=1e-3, abs=1e-6)
    wrong = ["--config", CONFIG, "diagnose.k=99"]
    done = run(DIAGNOSE, *wrong, cwd=tmp_path, ranks=2)
    assert done.returncode == 2 and (done.stdout + done.stderr).count("diagnose.k = 99") == 1


def test_analysis_knows_when_nothing_conflicts():
    """One family of prompts: every product is positive, and no k changes the sign."""
    generator = torch.Generator().manual_seed(0)
    c = torch.randint(0, 9, (200,), generator=generator)
    sums = torch.stack([c * 0.5, -(8 - c) * 0.5], 1)[..., None].double() * EASY_G
    records = [
        {"id": str(i), "prompt": f"{i}", "gold": "", "c": int(x), "n": 8} for i, x in enumerate(c)
    ]
    found = analyse({"last_layer": FeatureSums(c, 8, sums)}, records, 8)
    rows = found["measures"]["last_layer"]["groups"]
    assert rows[0]["plugin"]["value"] > 0 and all(row["plugin"]["value"] >= 0 for row in rows)
    assert found["measures"]["last_layer"]["against_k"]["sign_change"]["value"] is None
    assert found["pairs"] == [] and found["proxy"] is None
