//! Keys live in this process's memory: it leaves no core files and cannot be traced by others of the same user.

use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};

/// Turns core dumps off. Both calls only take rights away; where a sandbox forbids them, nothing else depends on them.
pub(crate) fn apply() {
    let _ = setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) });
    let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
}
