"""What a call to the service can come to besides an answer; shared by the clients, whatever they travel with."""

from __future__ import annotations

from quota.schemas import service


class ServiceUnavailable(Exception):
    """The service did not answer, or not with an answer; what the call did is unknown."""


class ServiceProblem(Exception):
    """The service refused: a problem document with a stable code."""

    def __init__(self, problem: service.Problem) -> None:
        super().__init__(f"{problem.code}: {problem.detail or problem.title}")
        self.problem = problem
        self.status = problem.status
        self.code = problem.code
        self.detail = problem.detail
        retry_after_s = problem.numbers.get("retry_after_s")
        self.retry_after_s = retry_after_s if isinstance(retry_after_s, int) else None
        """When sending it again may work, if the service said so: rate limits and lockouts."""


def problem_told(status: int, content: bytes) -> service.Problem:
    """The problem document of a refusal, or what can be told of an answer that is none."""
    try:
        return service.Problem.model_validate_json(content)
    except ValueError:
        return service.Problem(
            type="about:blank",
            title=f"HTTP {status}",
            status=status,
            code=f"http_{status}",
            detail=content.decode("utf-8", "replace")[:200],
        )
