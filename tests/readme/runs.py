"""Which test runs what README says, and why none does where none does."""

from typing import Final

RUN_BY: Final[dict[str, str]] = {
    # First steps
    "make serve": "tests/integration/test_serve.py::test_first_request_of_the_readme",
    'make serve ARGS="--port 8080"': "tests/integration/test_serve.py::test_chat_names_paris",
    "curl http://localhost:8000/v1/chat/completions *": (
        "tests/integration/test_serve.py::test_first_request_of_the_readme"
    ),
    "python: from openai import OpenAI": (
        "tests/integration/test_serve.py::test_openai_client_of_the_readme"
    ),
    "python: from engine import LLM, SamplingParams": (
        "tests/readme/test_snippets.py::test_a_story_without_a_server"
    ),
    # The command line
    "pageray serve": "tests/integration/test_serve.py::test_chat_names_paris",
    "pageray serve [MODEL]": "tests/integration/test_serve.py::test_chat_names_paris",
    "pageray serve --help": "tests/readme/test_claims.py::test_help_lists_every_option",
    "pageray serve Qwen/*": "tests/deployments/test_readme.py::test_a_model_of_the_hub",
    "pageray serve --config FILE": "tests/integration/test_models.py::*",
    "yaml: port: 8000": "tests/deployments/test_readme.py::test_several_models",
    "yaml: - {key: sk-1b6c..., tenant: acme, weight: 2}": (
        "tests/deployments/test_readme.py::test_keys_and_tenants"
    ),
    "pageray chat": "tests/integration/test_serve.py::test_chat_in_the_terminal",
    "pageray status": "tests/integration/test_serve.py::test_status_in_the_terminal",
    "pageray status [--watch]": "tests/integration/test_serve.py::test_status_is_watched",
    "pageray status --why ID": "tests/integration/test_serve.py::test_status_in_the_terminal",
    "pageray pull MODEL": ("tests/deployments/test_cli.py::test_pull_says_where_the_model_is"),
    "pageray pull MODEL --check": (
        "tests/deployments/test_cli_pull.py::test_it_says_how_much_was_checked"
    ),
    "pageray plan": (
        "tests/deployments/test_cli_plan.py::test_the_default_model_is_planned_for_this_machine"
    ),
    "pageray plan MODEL [same options]": (
        "tests/deployments/test_cli_plan.py::test_options_of_serve_change_the_plan"
    ),
    "pageray plan meta-llama/*": "tests/readme/test_snippets.py::test_plan_of_a_large_model",
    "pageray simulate TRACE*": "tests/readme/test_snippets.py::test_simulations",
    "pageray config [same options]": (
        "tests/deployments/test_cli.py::test_config_prints_what_serve_deploy_takes"
    ),
    "pageray batch INPUT OUTPUT": "tests/integration/test_batch.py::*",
    "pageray batch input.jsonl output.jsonl Qwen/*": "tests/integration/test_batch.py::*",
    "pageray batch input.jsonl output.jsonl --url *": (
        "tests/deployments/test_batch.py::test_an_own_application_takes_the_requests"
    ),
    'json: {"custom_id": *': (
        "tests/deployments/test_batch.py::test_every_request_is_answered_in_openais_form"
    ),
    # Clusters
    "pageray node-env*": (
        "tests/deployments/test_cli.py::"
        "test_a_shell_takes_the_environment_of_a_node_and_all_get_one_token"
    ),
    ". ./node.env": (
        "tests/deployments/test_cli.py::"
        "test_a_shell_takes_the_environment_of_a_node_and_all_get_one_token"
    ),
    "ray start*": "tests/integration/test_hosts.py::test_both_hosts_answer_alike_and_leave_nothing",
    "pageray serve smollm2 --address *": (
        "tests/deployments/test_cli.py::"
        "test_joining_a_cluster_leaves_its_haproxy_and_its_models_alone"
    ),
    "pageray config smollm2 --replicas 2 > app.yaml": (
        "tests/integration/test_deploy.py::"
        "test_serve_deploy_of_the_printed_config_gives_the_tokens_of_one_rank"
    ),
    "serve deploy*": (
        "tests/integration/test_deploy.py::"
        "test_serve_deploy_of_the_printed_config_gives_the_tokens_of_one_rank"
    ),
    "ray drain-node *": "tests/integration/test_moving_hosts.py::"
    "test_replicas_move_with_the_hosts_and_no_request_is_lost",
    "kubectl apply -k k8s/overlays/dev-cpu": (
        "tests/k8s/test_overlays.py::test_every_object_is_one_of_its_kind"
    ),
    "kubectl * -f k8s/*": "tests/k8s/test_overlays.py::test_every_object_is_one_of_its_kind",
    "kubectl apply -f k8s/*": "tests/k8s/test_overlays.py::test_every_object_is_one_of_its_kind",
    "kubectl apply -k k8s/batch": (
        "tests/k8s/test_overlays.py::test_every_object_is_one_of_its_kind"
    ),
    "pageray status --api-key KEY": (
        "tests/deployments/test_http_app.py::"
        "test_where_there_is_an_admins_key_it_alone_shows_the_service"
    ),
    "make k8s-config": (
        "tests/k8s/test_overlays.py::test_the_serve_config_is_what_pageray_config_writes"
    ),
    # Checks and figures
    "make chaos SEED=7 MINUTES=*": "tests/integration/test_chaos.py::*",
    "python -m tests.benchmarks.cluster_cases TRACE": (
        "tests/readme/test_snippets.py::test_figures_of_placement"
    ),
    "python -m tests.benchmarks.decision": (
        "tests/readme/test_snippets.py::test_figures_of_placement"
    ),
}
"""Command, or `LANGUAGE: FIRST LINE` of a code block, and the test that runs it.

A `*` stands for anything; as the name of a test, for all of the file.
"""

RUN_BY_NONE: Final[dict[str, str]] = {
    ". .venv/bin/activate": "the venv is that of the tests",
    "mermaid: *": "a picture",
    "kubectl -n pageray get rayjob *": "asks a cluster of Kubernetes",
    "python -m tests.benchmarks.observability": "takes minutes and an idle machine",
    "make check": "CI runs it (.ci/run)",
    "make test": "CI runs it (.ci/run)",
    "make test-long": "runs tests itself, for hours",
    "make test-gpu": "needs a GPU; it runs tests itself",
    "make bench-gpu": "needs a GPU; tests/triton/test_gpu_benchmark.py runs it on a fake device",
    "make bench": "takes hours and an idle machine",
    "make experiment": "takes hours; tests/engine/test_allocation_waste.py runs its simulation",
    "ray stop": "ends every Ray of this machine, that of other tests as well",
    "docker build *": "no docker in CI; tests/k8s/test_image.py lints the file",
    "kubectl -n pageray get rayservice pageray": "asks a cluster of Kubernetes",
    "python -m tests.benchmarks.accuracy": "takes an hour and an idle machine",
    "python -m tests.benchmarks.comparison *": "takes hours and an idle machine",
    "python -m tests.benchmarks.overhead *": "takes minutes and an idle machine",
    "python -m tests.benchmarks.replay *": "takes minutes and an idle machine",
    "python -m tests.benchmarks.stall": "takes minutes and an idle machine",
}
"""What no test runs, and why; that its words are taken is checked all the same."""
