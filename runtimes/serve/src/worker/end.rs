//! The ways of a request out of the batch: its end, a cancellation, a failure.

use super::{Worker, runtime};
use crate::{
    Failure, Finish, SavedInfo,
    job::{Job, Leave, Row},
};
use densessm_generate::{FinishReason, SavedSequence};
use densessm_session::States;

impl Worker {
    /// Ends a row of the batch. An error leaves batch and rows in disagreement.
    pub(super) fn finish(&mut self, index: usize, reason: FinishReason) -> Result<(), Failure> {
        let row = &self.rows[index];
        let job = self.jobs.get(&row.job);
        if row.fed() > row.prompt_tokens() && job.is_some_and(|job| job.cacheable() && job.request.choices == 1) {
            self.cache.insert(row.consumed_tokens(), || self.batch.select(&[index]));
        }
        let saved = if job.is_some_and(|job| job.request.save) {
            let states = self.batch.select(&[index]).map_err(runtime)?;
            self.saved.insert(SavedSequence { states, pending: row.sequence.pending() })
        } else {
            None
        };
        self.batch.swap_remove(index).map_err(runtime)?;
        let row = self.rows.swap_remove(index);
        self.conclude(&row, reason, saved);
        Ok(())
    }

    /// Ends a request that generates nothing and never joined the batch: once for each of its choices.
    pub(super) fn finish_unread(&mut self, mut row: Row, states: &States, reason: FinishReason) -> Result<(), Failure> {
        let Some(job) = self.jobs.get(&row.job) else { return Ok(()) };
        let (choices, save) = (job.request.choices, job.request.save);
        for choice in 0..choices {
            let saved = if save {
                let states = states.fork().map_err(runtime)?;
                self.saved.insert(SavedSequence { states, pending: row.sequence.pending() })
            } else {
                None
            };
            row.choice = choice;
            self.conclude(&row, reason, saved);
        }
        Ok(())
    }

    /// Tells the client that a choice has ended, and forgets the request after its last one.
    fn conclude(&mut self, row: &Row, reason: FinishReason, saved: Option<SavedInfo>) {
        let Some(job) = self.jobs.get_mut(&row.job) else { return };
        let (new_tokens, saved) = (row.sequence.new_tokens(), saved.map(|info| info.id));
        let seconds = job.submitted.elapsed().as_secs_f64();
        self.log.line(
            "finished",
            &[
                ("request", &job.id),
                ("choice", &row.choice),
                ("reason", &reason),
                ("prompt_tokens", &row.prompt_tokens()),
                ("new_tokens", &new_tokens),
                ("seconds", &format_args!("{seconds:.3}")),
            ],
        );
        // Who reads the metrics after the last event finds the slot free.
        self.publish();
        let Some(job) = self.jobs.get_mut(&row.job) else { return };
        job.finish(Finish { choice: row.choice, reason, new_tokens, saved }, &self.metrics);
        if job.open == 0 {
            self.jobs.remove(&row.job);
        }
    }

    /// Removes an admitted request with all of its rows.
    pub(super) fn leave(&mut self, id: u64, leave: Leave) {
        self.reading.take_if(|reading| reading.row.job == id);
        if let Some(mut job) = self.jobs.remove(&id) {
            self.dismiss(&mut job, leave);
        }
        for index in (0..self.rows.len()).rev() {
            if self.rows[index].job != id {
                continue;
            }
            if let Err(error) = self.batch.swap_remove(index) {
                let failure = runtime(error);
                return self.reset(&failure);
            }
            self.rows.swap_remove(index);
        }
    }

    /// Tells a client that its request leaves before its end.
    pub(super) fn dismiss(&self, job: &mut Job, leave: Leave) {
        match leave {
            Leave::Cancelled => {
                self.metrics.cancelled.add(1);
                self.log.line("cancelled", &[("request", &job.id)]);
            }
            Leave::Failed(failure) => {
                self.log.line("failed", &[("request", &job.id), ("error", &failure)]);
                job.fail(failure, &self.metrics);
            }
        }
    }

    /// Fails everything in the batch after an error that does not belong to one row, and starts an empty batch.
    pub(super) fn reset(&mut self, failure: &Failure) {
        let ids: Vec<u64> = self.rows.drain(..).map(|row| row.job).collect();
        for id in ids {
            if let Some(mut job) = self.jobs.remove(&id) {
                self.dismiss(&mut job, Leave::Failed(failure.clone()));
            }
        }
        let batch =
            self.model.initial_states(0).and_then(|mut batch| batch.reserve(self.options.slots).map(|()| batch));
        match batch {
            Ok(batch) => self.batch = batch,
            Err(error) => {
                self.log.line("stopped", &[("error", &error)]);
                self.leave_all(failure);
                self.closed = true;
            }
        }
    }

    pub(super) fn leave_all(&mut self, failure: &Failure) {
        self.reading = None;
        self.rows.clear();
        self.metrics.waiting.subtract(self.waiting.len() as u64);
        let jobs: Vec<Job> = self.jobs.drain().map(|(_, job)| job).chain(std::mem::take(&mut self.waiting)).collect();
        for mut job in jobs {
            self.dismiss(&mut job, Leave::Failed(failure.clone()));
        }
    }
}
