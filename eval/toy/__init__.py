"""The paper's toy: its study and its pictures."""
