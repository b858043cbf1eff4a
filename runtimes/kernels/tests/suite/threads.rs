use crate::{call::call, retention::Retention, scan::Scan};
use densessm_kernels::{Error, Level, Pool, SingleThreaded};
use std::{
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

/// Three threads that take tasks as they come.
struct Threads;

impl Pool for Threads {
    fn threads(&self) -> usize {
        3
    }

    fn run(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) -> Result<(), Error> {
        let next = AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    while let Some(number) = Some(next.fetch_add(1, Ordering::Relaxed)).filter(|&number| number < tasks)
                    {
                        task(number);
                    }
                });
            }
        });
        Ok(())
    }
}

#[test]
fn threads_compute_the_same_numbers_as_the_caller() {
    let scan = Scan::random([2, 33, 200, 16], vec![33, 20], [true, true], 2, true);
    let retention = Retention::random([2, 70, 2, 24, 400], vec![70, 9]);
    let level = Level::best();
    let run = |pool: &dyn Pool| {
        let scan = call("SelectiveScan", &scan.given(), level, &scan.operands(), pool).unwrap();
        let retention = call("Retention", &retention.given(), level, &retention.operands(true), pool).unwrap();
        scan.into_iter().chain(retention).map(|tensor| tensor.values).collect::<Vec<_>>()
    };
    assert_eq!(run(&Threads), run(&SingleThreaded));
}
