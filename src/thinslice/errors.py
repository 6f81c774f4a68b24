"""What can go wrong, as one small tree. Every message says what was got, what is needed, and what to do next.

ThinsliceError            (a ValueError; the command line prints it on one line and exits with 2)
|-- InputRefused          the file cannot be read as a scan
|-- PlanRefused           the scan can be read, but not made thinner as wished; the way out is in the message
|-- ModelRefused          no such model, or the file is not one of ours
`-- OutputRefused         the answer may not be written there
"""


class ThinsliceError(ValueError):
    """Base of every error a caller may want to catch."""


class InputRefused(ThinsliceError):
    """The file cannot be read as a scan."""


class PlanRefused(ThinsliceError):
    """The scan can be read, but not made thinner as wished."""


class ModelRefused(ThinsliceError):
    """No such model, or the file is not a thinslice model."""


class OutputRefused(ThinsliceError):
    """The answer may not be written there."""
