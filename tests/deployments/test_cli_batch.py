"""`pageray batch` as a user runs it, on a service that runs and on one that is started for it."""

import json
from pathlib import Path

import pytest

from tests.deployments.command_line import Launches, Run
from tests.deployments.scripted_service import ScriptedService, completion, refusal


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    """Of two requests, and for their answers."""
    line = {"method": "POST", "url": "/v1/completions"}
    lines = [{**line, "custom_id": name, "body": {"prompt": name}} for name in "ab"]
    path = tmp_path / "input.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in lines))
    return str(path), str(tmp_path / "output.jsonl")


def test_a_running_service_is_asked(
    run: Run, service: ScriptedService, url: str, files: tuple[str, str]
) -> None:
    words = ("batch", *files, "--url", f"{url}/v1", "--api-key", "secret")
    code, shown, error = run(*words)
    assert (code, error) == (0, "")
    assert "6 prompt and 4 output tokens" in shown
    assert f"2 of 2 answered in {files[1]}." in shown
    assert service.authorization == "Bearer secret"
    assert len(Path(files[1]).read_text().splitlines()) == 2
    assert run(*words)[0] == 0
    assert len(service.bodies) == 2, "all were answered already"


def test_errors_among_the_answers_are_an_exit_code_until_they_are_gone(
    run: Run, service: ScriptedService, url: str, files: tuple[str, str]
) -> None:
    service.handle = lambda body, _: (
        completion("b") if body["prompt"] == "b" else refusal(500, "out of luck")
    )
    code, shown, _ = run("batch", *files, "--url", url)
    assert code == 1
    assert "1 of them with an error" in shown
    service.handle = lambda body, _: completion(body["prompt"])
    assert run("batch", *files, "--url", url)[0] == 0


def test_a_service_is_started_with_the_options_of_serve(
    run: Run, launches: Launches, service: ScriptedService, url: str, files: tuple[str, str]
) -> None:
    launches.url = url
    words = ("batch", *files, "some/model", "--replicas", "2", "-tp", "4", "--api-key", "secret")
    assert run(*words, "--port", "29871")[0] == 0
    assert launches.model().model == "some/model"
    assert (launches.model().replicas_max, launches.model().tensor_parallel_size) == (2, 4)
    assert launches.args is not None
    assert len(launches.args.api_keys) == 1
    assert [model for model, _ in launches.pulled] == ["some/model"]
    assert launches.environment["RAY_AUTH_MODE"] == "token"
    assert service.authorization == "Bearer secret"
    assert sorted(service.prompts()) == ["a", "b"]


def test_nothing_is_started_where_nothing_is_left_to_ask(
    run: Run, launches: Launches, url: str, files: tuple[str, str]
) -> None:
    run("batch", *files, "--url", url)
    assert run("batch", *files)[0] == 0
    assert launches.args is None


def test_nothing_is_started_for_a_file_that_is_no_batch(
    run: Run, launches: Launches, files: tuple[str, str]
) -> None:
    with Path(files[0]).open("a") as file:
        file.write('{"custom_id": "a"}\n')
    code, _, error = run("batch", *files)
    assert code == 2
    assert f"{files[0]}:3: method is no POST." in error
    assert launches.args is None
    assert not Path(files[1]).exists()


def test_what_cannot_be_meant_is_refused(
    run: Run, launches: Launches, files: tuple[str, str]
) -> None:
    code, _, error = run("batch", *files, "--url", "http://127.0.0.1:1", "--replicas", "2")
    assert code == 2
    assert "--replicas is for a service that is started here" in error
    code, _, error = run("batch", files[0], files[0])
    assert code == 2
    assert "both input and output" in error
    Path(files[1]).touch()
    code, _, error = run("batch", "nowhere.jsonl", files[1])
    assert code == 2
    assert "nowhere.jsonl" in error
    assert launches.args is None


def test_a_service_that_is_not_there_is_told_at_once(run: Run, files: tuple[str, str]) -> None:
    code, _, error = run("batch", *files, "--url", "http://127.0.0.1:1")
    assert code == 2
    assert "Nobody listens" in error


def test_an_interrupted_start_has_an_exit_code_of_its_own(
    run: Run, launches: Launches, files: tuple[str, str]
) -> None:
    launches.error = KeyboardInterrupt()
    code, shown, _ = run("batch", *files, "--port", "29871")
    assert code == 130
    assert "goes on from here" in shown
