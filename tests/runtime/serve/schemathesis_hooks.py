"""What a description cannot say: a condition is SQL, a moment ends after it starts."""

import schemathesis


@schemathesis.hook
def before_call(context, case, kwargs):
    """What was made not to fit the description is sent as it is."""
    if case.meta is None or not case.meta.generation.mode.is_positive:
        return
    if case.operation.path.endswith("/search") and case.body.get("where"):
        case.body = {**case.body, "where": "duration_s > 0"}
    if case.query and "start_s" in case.query:
        case.query = {**case.query, "start_s": 0, "end_s": 1}
