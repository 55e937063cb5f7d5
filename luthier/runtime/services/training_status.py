"""Where a training stands, in the words of the wire."""

from __future__ import annotations

from caikit.core.data_model import JobStatus
from caikit.interfaces.runtime.data_model import TrainingStatusResponse

from luthier.files.names import is_inside
from luthier.runtime.jobs.base import Job, JobState


def as_status(job: Job) -> TrainingStatusResponse:
    """A job in the words of the wire.

    Args:
        job: Any job.

    Returns:
        caikit's data object.
    """
    return TrainingStatusResponse(
        training_id=job.job_id,
        state=JobStatus[job.state.name],
        submission_timestamp=job.submitted_at,
        completion_timestamp=job.finished_at,
        reasons=[*job.reasons, *_remarks(job)],
    )


def _remarks(job: Job) -> list[str]:
    """What a caller would not expect of a training that is complete."""
    output_dir = job.folder.parent.parent
    place = job.spec.model_folder
    if job.state is not JobState.COMPLETED or place.parent == output_dir:
        return []
    name = place.relative_to(output_dir).as_posix() if is_inside(place, output_dir) else place.name
    return [f"saved as {name!r} in the server's output_dir; models in folders there are not served"]
