//! The threads that run a kernel's tasks.

use crate::Error;

/// A runtime's threads, which run the tasks of a kernel.
pub trait Pool: Sync {
    /// How many tasks can run at once.
    fn threads(&self) -> usize;

    /// Runs `task` for every number below `tasks`, in any order, and returns when all have ended.
    ///
    /// # Errors
    /// When the runtime cannot run them.
    fn run(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) -> Result<(), Error>;
}

/// Runs all tasks on the calling thread.
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
