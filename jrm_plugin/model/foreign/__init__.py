"""Published reward models of other projects, into our folders and back: one file a layout of theirs."""

from jrm_plugin.model.foreign.editreward import editreward
from jrm_plugin.model.foreign.hpsv3 import hpsv3

LAYOUTS = {"editreward": editreward, "hpsv3": hpsv3}
