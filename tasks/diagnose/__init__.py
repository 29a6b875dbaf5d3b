"""``rescalenet diagnose``: why a net trains, or why it does not."""

from tasks.diagnose.measure import diagnose as diagnose
from tasks.diagnose.signals import Signals as Signals
from tasks.diagnose.verdicts import verdicts as verdicts
