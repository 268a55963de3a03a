from zk0desk.errors import EngineMissingError, ExitStatus, OperatorError, SettingsError


def test_an_error_says_what_happened_why_and_what_to_do():
    error = OperatorError("The recording cannot be read.", "A video is missing.", "Copy it again.")
    assert str(error) == "The recording cannot be read. A video is missing. Copy it again."


def test_an_error_without_a_remedy_reads_as_a_sentence_too():
    assert str(OperatorError("The node stopped.", remedy="")) == "The node stopped."


def test_an_error_is_an_object_with_a_stable_code_for_machines():
    assert SettingsError("a", "b", "c").to_json() == {"code": "settings-invalid", "what": "a", "why": "b", "remedy": "c"}


def test_exit_statuses_are_the_documented_ones(checkout):
    page = (checkout / "docs" / "developers.md").read_text(encoding="utf-8")
    for status in ExitStatus:
        assert f"| {int(status)} |" in page, f"{status.name} is not in docs/developers.md"
    assert EngineMissingError.exit_status == 7
    assert SettingsError.exit_status == 2
