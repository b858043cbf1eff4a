//! Whose threads do the work.

use crate::Error;

/// Threads that share out tasks; a runtime's own.
pub trait Pool: Sync {
    /// How many tasks can run at once.
    fn threads(&self) -> usize;

    /// Runs `task` for every number below `tasks`, in any order, and returns when all have ended.
    ///
    /// # Errors
    /// When the runtime cannot.
    fn run(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) -> Result<(), Error>;
}

/// No pool: the calling thread does it all.
#[derive(Clone, Copy, Debug, Default)]
pub struct SingleThreaded;

impl Pool for SingleThreaded {
    fn threads(&self) -> usize {
        1
    }

    fn run(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) -> Result<(), Error> {
        (0..tasks).for_each(task);
        Ok(())
    }
}
