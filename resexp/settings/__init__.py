"""What decides a run: every setting with its default, range and source; jobs; what can be chosen.

Plain dataclasses: nothing here knows Hydra, Typer or torch.
"""

from resexp.settings.fields import Above as Above
from resexp.settings.fields import Range as Range
from resexp.settings.fields import UsageError as UsageError
from resexp.settings.job import Job as Job
from resexp.settings.job import as_dict as as_dict
from resexp.settings.job import circumstances as circumstances
from resexp.settings.job import complete as complete
from resexp.settings.job import digest as digest
from resexp.settings.job import earlier as earlier
from resexp.settings.job import flatten as flatten
from resexp.settings.job import from_dict as from_dict
from resexp.settings.job import identity as identity
from resexp.settings.job import misfit as misfit
from resexp.settings.job import run_name as run_name
from resexp.settings.schema import LAUNCHERS as LAUNCHERS
from resexp.settings.schema import Activation as Activation
from resexp.settings.schema import Arch as Arch
from resexp.settings.schema import BnEval as BnEval
from resexp.settings.schema import BottleneckStride as BottleneckStride
from resexp.settings.schema import Data as Data
from resexp.settings.schema import Engine as Engine
from resexp.settings.schema import Init as Init
from resexp.settings.schema import Launch as Launch
from resexp.settings.schema import Launcher as Launcher
from resexp.settings.schema import Merge as Merge
from resexp.settings.schema import Normalisation as Normalisation
from resexp.settings.schema import Normalise as Normalise
from resexp.settings.schema import Order as Order
from resexp.settings.schema import Precision as Precision
from resexp.settings.schema import Seeds as Seeds
from resexp.settings.schema import Settings as Settings
from resexp.settings.schema import Shortcut as Shortcut
from resexp.settings.schema import Split as Split
from resexp.settings.schema import Stream as Stream
from resexp.settings.schema import Twin as Twin
from resexp.settings.schema import Unit as Unit
from resexp.settings.schema import WeightDecayOn as WeightDecayOn
from resexp.settings.schema import convolutions_per_block as convolutions_per_block
from resexp.settings.schema import nearest_depths as nearest_depths
