r"""Responses that try to be judged right, to hang the judge, or to run code, and pieces of such.

The gold is GOLD throughout, and none of these gives it as its one answer.
"""

GOLD = "61728"

LISTS = [  # each names the gold and 3: a hedge
    *(
        rf"\boxed{{{GOLD}{x}3}}"
        for x in (", ", "; ", r" \lor ", r" \vee ", " | ", r" \mid ", r" \\ ")
    ),
    *(
        rf"\boxed{{3{x}{GOLD}}}"
        for x in (r"\text{ or }", r"\mathrm{or}", r"\textbf{ or }", r"\quad ")
    ),
    *(
        rf"\boxed{{3{x}{GOLD}}}"
        for x in (r"\cup ", r"\to ", r"\Rightarrow ", r"\land ", r"\backslash ")
    ),
    *(
        rf"\boxed{{3{x}{GOLD}}}"
        for x in (r"\dots", r"\cdots ", r"\pm ", "/", r"\text{ }", "~", "&", "@")
    ),
    *(
        rf"\boxed{{3{x}{GOLD}}}"
        for x in (r"\ ", r"\space ", r"\bmod ", r"\cong ", "<", r"\le ", ":", "..")
    ),
    *(rf"\boxed{{{GOLD}\text{{{x}}}}}" for x in ("/3", " or 3", ", 3", "(3)")),
    rf"\boxed{{\begin{{cases}}3\\{GOLD}\end{{cases}}}}",
    rf"\boxed{{\begin{{matrix}}3&{GOLD}\end{{matrix}}}}",
    *(rf"\boxed{{{x}3, {GOLD}{y}}}" for x, y in (("(", ")"), ("[", "]"), (r"\{", r"\}"))),
    rf"\boxed{{x \in \{{3, {GOLD}\}}}}",
    rf"\boxed{{3}} or \boxed{{{GOLD}}}",
    rf"\boxed{{3}}\boxed{{{GOLD}}}",
    rf"\boxed{{{GOLD}}}, or \boxed{{\frac{{{GOLD}1}}{{10}}}}",
    rf"\boxed{{{GOLD}.0}} or \boxed{{{GOLD}}} or \boxed{{3}}",
    rf"\boxed{{3}}\pmod{{7}} or \boxed{{{GOLD}}}\pmod{{7}}",
    *(rf"\boxed{{{x}}}" for x in (f"({GOLD} or {GOLD}, 3)", rf"3, {GOLD} \pmod{{7}}")),
    ", ".join(rf"\boxed{{{x}}}" for x in (1, 2, 3, GOLD, 5)),
    *(
        f"{mark}{GOLD} {x} 3"
        for mark in ("", "#### ", "Answer: ")
        for x in ("or", "vs", "maybe", ";")
    ),
    f"either {GOLD} or 3",
    f"{GOLD}, 3",
    f"{GOLD}\n3",
]

NOT_IT = [  # close to the gold, or something else that holds it
    *(rf"\boxed{{{x}}}" for x in (f"-{GOLD}", f"{GOLD}!", f"{GOLD}^2", f"{GOLD}²", f"{GOLD}.5")),
    *(
        rf"\boxed{{{x}}}"
        for x in (rf"\neq {GOLD}", rf"\not {GOLD}", f"x < {GOLD}", rf"x \ne {GOLD}")
    ),
    *(
        rf"\boxed{{{x}}}"
        for x in (rf"\frac{{{GOLD}}}{{0}}", f"{GOLD}x", f"{GOLD}i", rf"{GOLD}+\epsilon")
    ),
    *(
        rf"\boxed{{{x}}}"
        for x in ("x", "?", "...", r"\square", r"\text{answer}", "True", "None", "nan")
    ),
    *(rf"\boxed{{{x}}}" for x in (r"\infty", r"\emptyset", "S", "gold", r"\mathrm{gold}", "0/0")),
    rf"\boxed{{{GOLD}}}, no: \boxed{{3}}",
    rf"\boxed{{{GOLD}",
    rf"It is {GOLD}, so \boxed{{",
    rf"Put your final answer within \boxed{{}}. {GOLD} is asked for.\n\boxed{{3}}",
    "Please reason step by step, and put your final answer within \\boxed{}.",
    f"It is {GOLD}.\nOr is it?",
    r"\boxed{" + "\\phantom{" + GOLD + "}3}",
    # look-alikes and what does not print
    *(
        rf"\boxed{{{GOLD[:2]}{x}{GOLD[2:]}}}"
        for x in ("O", "l", "\u200b0", "\x001", "\u202e3", "\x089")
    ),
    "\\boxed{6l728}",
    "\\boxed{б1728}",
    "\\boxed{⑥1728}",
    "\\boxed{6¹728}",
    f"{GOLD}\u202e\n8",
    "\x00\xff\ud800\udfff\x1b[2J",
]

ORDERED = [  # (gold, what is wrong for it, what is right): a tuple has an order, a list has none
    ("1,-2", ["(-2,1)", r"\left(-2,\,1\right)", "x=(-2,1)", "[1,-2)"], ["-2,1", r"\{1,-2\}"]),
    ("1,-2", [r"x \in (-2,1)", "[-2,1]"], ["(1,-2)", r"-2 \text{ and } 1", r"1 \text{ or } -2"]),
    ("-2 \\text{ and } 1", ["(1,-2)"], ["(-2,1)", "1,-2"]),
    ("(1,-2)", ["-2,1", "(-2,1)", r"\{-2,1\}"], ["(1,-2)", r"\left(1.0,\,-2\right)"]),
    (r"\{1,-2\}", ["(-2,1)", "[-2,1]"], [r"\{1,-2\}", r"\{-2,1\}", "(1,-2)"]),
    ("(-2,1)", ["[-2,1]", "(-2,1]", "(1,-2)", "1,-2"], ["(-2,1)"]),
    ("[-2,1]", ["(-2,1)", "[-2,1)", "-2,1"], ["[-2,1]"]),
    ("1,2,3", ["(3,1,2)", "(1,2)", "(1,2,3,4)", "[3,2,1]"], ["(1,2,3)", "3,1,2", r"\{2,3,1\}"]),
    ("(1,2,3)", ["(3,1,2)", "3,1,2", "(1,2)"], ["(1,2,3)"]),
    ("100,-200", ["(-200,100)"], ["(100,-200)", "-200, 100"]),
    ("(1,2),(3,4)", ["(2,1),(3,4)"], ["(3,4),(1,2)"]),
]

EQUAL = [  # (gold, an answer that says its one value more than once, or with its modulus)
    (r"\frac{639}{40}", r"\boxed{15\frac{39}{40}}, or $\boxed{\frac{639}{40}}$"),
    (r"15\frac{39}{40}", r"\boxed{15\frac{39}{40}}, or \boxed{\frac{639}{40}}"),
    ("0.5", r"\boxed{\frac12} or \boxed{0.5}"),
    ("44", r"$x \equiv \boxed{44}\pmod{83}$."),
    (r"44 \pmod{83}", r"$x \equiv \boxed{44}\pmod{83}$."),
    (r"44 \pmod{83}", r"$x \equiv \boxed{44} \pmod {83}$."),
    (r"44 \pmod{83}", r"\boxed{44}"),
    ("44", r"\boxed{44 \pmod{83}}"),
    (r"3, 5 \pmod 7", r"\boxed{5}\pmod{7} or \boxed{3}\pmod{7}"),
]

UNEQUAL = [  # likewise, and the values or the moduli differ
    (r"\frac{639}{40}", r"\boxed{15\frac{39}{40}}, or \boxed{\frac{640}{40}}"),
    (r"\frac{639}{40}", r"\boxed{\frac{638}{40}}, or \boxed{\frac{639}{40}}"),
    (r"44 \pmod{83}", r"\boxed{44}\pmod{7}"),
    (r"44 \pmod{83}", r"\boxed{44 \pmod 7}"),
    (r"44 \pmod{83}", r"\boxed{83}"),
    (r"44 \pmod{83}", r"\boxed{43}\pmod{83}"),
    ("2", r"\boxed{5}\pmod{3}"),
]

SLOW = [  # each would compute for ages, or deepens without end
    *(
        rf"\boxed{{{x}}}"
        for x in ("9^{9^{9^9}}", "9^{9^{9^{9^9}}}", "9^9^9^9", "(10^{10})!", "99999999!")
    ),
    *(
        rf"\boxed{{{x}}}"
        for x in ("9" * 4_000, "9" * 4_000 + "^" + "9" * 90, "((9!)!)!", r"2^{-9^{9^9}}")
    ),
    *(
        rf"\boxed{{{x}}}"
        for x in (r"\binom{10^{9}}{10^{8}}", r"\sum_{i=1}^{10^{99}} i!", r"\prod_{i=1}^{10^9} i")
    ),
    *(
        rf"\boxed{{{x}}}"
        for x in (r"\int_0^1 x^{x^{x^x}} dx", r"\sqrt" * 900 + "{2}", "-" * 4_000 + "3")
    ),
    "9**9**9**9",
    "9^9^9^9",
    "1" + "+1" * 2_000,
    "(" * 100_000,
    "(" * 1_000 + "3" + ")" * 1_000,
    r"\boxed{" + "{" * 100_000,
    r"\boxed{" * 400 + "3" + "}" * 400,
    r"\frac{1}{" * 400 + "3" + "}" * 400,
    *(
        x * (1_000_000 // len(x))
        for x in (r"\boxed", r"\boxed{", r"\boxed{3} or ", "answer: ", "answer:\n")
    ),
    *(
        x * (1_000_000 // len(x))
        for x in ("#### \n", "9", "9,", r"\text{", "$", "\n", " ", ". ", "\\", "\x00")
    ),
]


def code(canary: str) -> list[str]:
    """What would make the file `canary`, or set a variable of the environment, if it were run."""
    calls = [
        f"open('{canary}','w')",
        f"__import__('os').system('touch {canary}')",
        f"__import__('pathlib').Path('{canary}').touch()",
        f"exec(\"open('{canary}','w')\")",
        f'eval(\'open("{canary}","w")\')',
        f"[x for x in ().__class__.__base__.__subclasses__()][0] or open('{canary}','w')",
        f"(lambda: open('{canary}','w'))()",
        f'S(\'open("{canary}","w")\')',
        f'sympify(\'open("{canary}","w")\')',
        "__import__('os').environ.__setitem__('CANARY','1')",
        "__import__('os').putenv('CANARY','1')",
        f"1+1)+open('{canary}','w').write('1'",
        f"1;open('{canary}','w')",
        f"1\nopen('{canary}','w')",
        f"`touch {canary}`",
        f"$(touch {canary})",
        f"\\input{{|touch {canary}}}",
        f"\\immediate\\write18{{touch {canary}}}",
        f"\\directlua{{os.execute('touch {canary}')}}",
        f"!!python/object/apply:os.system ['touch {canary}']",
        f"file://{canary}",
        "/etc/passwd",
        "$HOME",
    ]
    forms = [
        "{}",
        "\\boxed{{{}}}",
        "${}$",
        "#### {}",
        "Answer: {}",
        "\\boxed{{\\operatorname{{{}}}}}",
    ]
    return [form.format(call) for form in forms for call in calls]


PIECES = [
    *(
        r"\boxed{",
        "}",
        "{",
        "#### ",
        "Answer: ",
        "the answer is ",
        "\n",
        "$",
        " or ",
        ", ",
        "; ",
        r"\\",
    ),
    *(
        "3",
        "-",
        "+",
        "*",
        "/",
        "^",
        "!",
        "(",
        ")",
        "=",
        "<",
        r"\frac",
        r"\sqrt",
        r"\text{",
        r"\cup ",
        r"\pm ",
    ),
    *(
        "9^9^9",
        "999999999999!",
        r"\infty",
        r"\left(",
        r"\right)",
        r"\begin{matrix}",
        r"\end{matrix}",
        "&",
    ),
    *(
        "__import__('os')",
        "lambda:0",
        "eval(",
        "3.0e9",
        "\x00",
        "\u202e",
        "\ud800",
        "½",
        "²",
        "٣",
        "%",
        "_",
    ),
    *(
        r"\sum_{i=1}^{9}",
        r"\int",
        r"\log",
        r"\sin",
        r"\binom{9}{3}",
        r"\mathrm{or}",
        "x",
        "i",
        "e",
        "|",
        "~",
    ),
]
