"""Lets s3prl 0.4.18 from PyPI run on torch 2.11 to 2.13, torchaudio 2.11 and huggingface_hub 1 and 2.

Import this package before the first import of s3prl. Each module holds the fixes for one broken party: `torchaudio`,
`packages` (other libraries), and s3prl's own `command_line`, `runner`, `tasks`, `collection` and `messages`. A fix
looks for the feature that it mends, never for a version number, and is skipped if there is nothing to mend. s3prl's
modules are fixed when s3prl imports them, so nothing is loaded that is not used.
"""

from upstreams.s3prl.compat import collection, command_line, messages, packages, runner, tasks, torchaudio
from upstreams.s3prl.compat.patching import FixOnImport

packages.check_undeclared_requirements()
torchaudio.add_audio_backend_setter()
torchaudio.add_sox_effects()
torchaudio.read_audio_by_soundfile()
packages.add_hugging_face_placeholders()
packages.add_catalyst_sampler()
packages.add_sox_package()
packages.allow_namespace_in_checkpoints()
messages.hide_deprecations()
FIXES = command_line.FIXES | runner.FIXES | tasks.FIXES | collection.FIXES
FixOnImport("s3prl", FIXES, messages.quiet_import).install()
