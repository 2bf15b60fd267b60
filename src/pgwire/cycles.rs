//! What a client has asked, and has not been answered yet: one entry for every message that the server answers with a
//! `ReadyForQuery`, in order, and when each one's last byte was forwarded.
//!
//! Entries that were forwarded together stand in one run, so that a million of them in a pipeline take no more memory than
//! one. When there are too many runs, entries are counted on and no longer timed.

use std::collections::VecDeque;
use std::time::Instant;

use super::frame::OutOfStep;

/// The most runs that are kept: 6 KiB.
const MAX_RUNS: usize = 256;

/// Room for so many is kept while there is none.
const IDLE_RUNS: usize = 8;

/// What an entry stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// A `Query` or a `FunctionCall`.
    Query,
    /// A `Sync`, the end of a batch.
    Sync,
    /// A `CopyDone` or `CopyFail`, which gets no answer of its own. `executed`: there was an `Execute` since the entry
    /// before, so it is that one's, and else that entry's.
    CopyEnd { executed: bool },
}

/// When the last byte of an entry was forwarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Forwarded {
    /// It is on its way.
    NotYet,
    /// Then.
    At(Instant),
    /// There were too many to remember.
    Forgotten,
}

#[derive(Clone, Copy, Debug)]
struct Run {
    kind: Kind,
    count: u64,
    forwarded: Forwarded,
}

/// The entries of one connection.
#[derive(Clone, Debug, Default)]
pub(super) struct Cycles {
    runs: VecDeque<Run>,
    /// A batch or a query has begun that has not ended.
    begun: bool,
    /// There was an `Execute` since the last entry.
    executed: bool,
    /// The server takes the rows of a COPY, and ignores every Sync until the client has ended it.
    copying_in: bool,
}

impl Cycles {
    /// Whether an answer is still to come.
    pub(super) fn are_open(&self) -> bool {
        self.begun || !self.runs.is_empty()
    }

    /// A query, or a message of a batch, begins.
    pub(super) fn begin(&mut self) -> Result<(), OutOfStep> {
        // A server in the middle of a COPY takes nothing else, and cannot go on after it.
        if self.copying_in {
            return Err(OutOfStep);
        }
        self.begun = true;
        Ok(())
    }

    /// An `Execute` ends.
    pub(super) fn executed(&mut self) {
        self.executed = true;
    }

    /// A `Query` or a `FunctionCall` ends.
    pub(super) fn query(&mut self) -> Result<(), OutOfStep> {
        self.end_with(Kind::Query)
    }

    /// A `Sync`.
    pub(super) fn sync(&mut self) -> Result<(), OutOfStep> {
        if self.copying_in { Ok(()) } else { self.end_with(Kind::Sync) }
    }

    fn end_with(&mut self, kind: Kind) -> Result<(), OutOfStep> {
        (self.begun, self.executed) = (false, false);
        self.push(kind)
    }

    /// A `CopyDone` or `CopyFail` of the client.
    pub(super) fn copy_ended(&mut self) -> Result<(), OutOfStep> {
        if self.copying_in {
            self.copying_in = false;
            return Ok(());
        }
        // The COPY may have failed long ago: then it means nothing.
        if self.runs.is_empty() && !self.executed {
            return Ok(());
        }
        self.push(Kind::CopyEnd { executed: self.executed })
    }

    fn push(&mut self, kind: Kind) -> Result<(), OutOfStep> {
        let full = self.runs.len() >= MAX_RUNS;
        match self.runs.back_mut() {
            Some(run) if run.kind == kind && (full || run.forwarded == Forwarded::NotYet) => {
                run.count += 1;
                if full {
                    run.forwarded = Forwarded::Forgotten;
                }
            }
            _ if full => return Err(OutOfStep),
            _ => self.runs.push_back(Run { kind, count: 1, forwarded: Forwarded::NotYet }),
        }
        Ok(())
    }

    /// Everything so far has been forwarded.
    pub(super) fn forwarded(&mut self, now: Instant) {
        let new = self.runs.iter_mut().rev().take_while(|run| run.forwarded == Forwarded::NotYet);
        new.for_each(|run| run.forwarded = Forwarded::At(now));
    }

    /// A `ReadyForQuery` has come: the entry that it answers.
    pub(super) fn answered(&mut self) -> Result<Forwarded, OutOfStep> {
        self.copying_in = false;
        let answered = loop {
            let run = self.runs.front_mut().ok_or(OutOfStep)?;
            if let Kind::Query | Kind::Sync = run.kind {
                break run.forwarded;
            }
            self.runs.pop_front();
        };
        self.take_one();
        // Those of the entry, whose COPY failed before it began.
        while self.pop_run(Kind::CopyEnd { executed: false }).is_some() {}
        Ok(answered)
    }

    /// The server begins to take the rows of a COPY. What the client has sent already counts as if it were sent now.
    pub(super) fn copy_in_began(&mut self) -> Result<(), OutOfStep> {
        let query = self.pop_run(Kind::Query);
        if query.is_some_and(|run| run.count > 1) {
            return Err(OutOfStep);
        }
        while self.pop_run(Kind::Sync).is_some() {}
        match self.runs.front() {
            None => self.copying_in = true,
            Some(Run { kind: Kind::CopyEnd { .. }, .. }) => self.take_one(),
            Some(_) => return Err(OutOfStep),
        }
        if let Some(query) = query {
            self.runs.push_front(query);
        }
        Ok(())
    }

    /// The server has an error to say: no COPY goes on after it.
    pub(super) fn failed(&mut self) {
        self.copying_in = false;
    }

    fn pop_run(&mut self, kind: Kind) -> Option<Run> {
        if self.runs.front()?.kind == kind { self.runs.pop_front() } else { None }
    }

    /// Takes one entry off the first run.
    fn take_one(&mut self) {
        if let Some(run) = self.runs.front_mut() {
            run.count -= 1;
            if run.count == 0 {
                self.runs.pop_front();
            }
        }
        if self.runs.is_empty() {
            self.runs.shrink_to(IDLE_RUNS);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn entries(cycles: &Cycles) -> u64 {
        cycles.runs.iter().map(|run| run.count).sum()
    }

    #[test]
    fn a_million_in_a_pipeline_take_no_more_room_than_one() {
        let mut cycles = Cycles::default();
        for _ in 0..1_000_000 {
            cycles.sync().unwrap();
        }
        assert_eq!((cycles.runs.len(), entries(&cycles)), (1, 1_000_000));
        let now = Instant::now();
        cycles.forwarded(now);
        for _ in 0..1_000_000 {
            assert_eq!(cycles.answered(), Ok(Forwarded::At(now)));
        }
        assert_eq!(cycles.answered(), Err(OutOfStep));
    }

    #[test]
    fn beyond_what_is_remembered_entries_are_counted_and_not_timed() {
        let (mut cycles, start) = (Cycles::default(), Instant::now());
        let at = |n: usize| start + Duration::from_secs(n as u64);
        for n in 0..10 * MAX_RUNS {
            cycles.query().unwrap();
            cycles.forwarded(at(n));
        }
        assert_eq!((cycles.runs.len(), entries(&cycles)), (MAX_RUNS, 10 * MAX_RUNS as u64));
        assert_eq!(cycles.sync(), Err(OutOfStep), "there was room for one more kind");
        for n in 0..10 * MAX_RUNS {
            let expected = if n < MAX_RUNS - 1 { Forwarded::At(at(n)) } else { Forwarded::Forgotten };
            assert_eq!(cycles.answered(), Ok(expected), "{n}");
        }
        cycles.query().unwrap();
        cycles.forwarded(at(0));
        assert_eq!(cycles.answered(), Ok(Forwarded::At(at(0))));
        assert!(!cycles.are_open());
    }

    /// Runs a conversation: `Q`uery, `S`ync, e`x`ecute, copy ends in `c`, and from the server `G` (CopyIn), `E`rror, `Z`.
    fn run(conversation: &str) -> Result<u64, OutOfStep> {
        let mut cycles = Cycles::default();
        for message in conversation.chars() {
            match message {
                'Q' => cycles.begin().and_then(|()| cycles.query())?,
                'S' => cycles.sync()?,
                'x' => {
                    cycles.begin()?;
                    cycles.executed();
                }
                'c' => cycles.copy_ended()?,
                'G' => cycles.copy_in_began()?,
                'E' => cycles.failed(),
                'Z' => drop(cycles.answered()?),
                _ => unreachable!(),
            }
        }
        Ok(entries(&cycles))
    }

    #[test]
    fn the_server_ignores_a_sync_in_the_middle_of_a_copy() {
        for (conversation, left) in [
            // Simple: waiting for the server, not waiting, with a Sync nobody needs, twice in one query, failing.
            ("QGcZ", Ok(0)),
            ("QcGZ", Ok(0)),
            ("QGScZ", Ok(0)),
            ("QScGZ", Ok(0)),
            ("QGcGcZ", Ok(0)),
            ("QccGGZ", Ok(0)),
            ("QEZc", Ok(0)),
            ("QcEZ", Ok(0)),
            ("QGEZc", Ok(0)),
            // Extended: as libpq does it, in one go, with Flush in place of the first Sync.
            ("xSGcSZ", Ok(0)),
            ("xScSGZ", Ok(0)),
            ("xGcSZ", Ok(0)),
            ("xcSGZ", Ok(0)),
            ("xSSSGSScSZ", Ok(0)),
            // After other batches, and before some.
            ("xSxSZGcSZ", Ok(0)),
            ("xSxcSZGZ", Ok(0)),
            ("xScSxSGZZ", Ok(0)),
            // It fails before it begins, or in its middle, and the client has gone on or not.
            ("xSEZcSZ", Ok(0)),
            ("xScSEZZ", Ok(0)),
            ("xSGEcSZ", Ok(0)),
            ("xSGcSEZ", Ok(0)),
            ("xScEZxScSGZ", Ok(0)),
            // The end of the copy that failed is not the end of the next.
            ("xScxSEZGcSZ", Ok(0)),
            ("xScxScSEZGZ", Ok(0)),
            // It never ends.
            ("QG", Ok(1)),
            ("xSG", Ok(0)),
            // No server goes on after these.
            ("QGQ", Err(OutOfStep)),
            ("QQG", Err(OutOfStep)),
            ("xSGx", Err(OutOfStep)),
            ("xSQG", Err(OutOfStep)),
            ("Z", Err(OutOfStep)),
            ("cZ", Err(OutOfStep)),
        ] {
            assert_eq!(run(conversation), left, "{conversation}");
        }
    }
}
