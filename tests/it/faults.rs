//! Every fault at every moment: what is under way then, what is said of it, and what is left afterwards.
//!
//! A row says what happens, when, and what is expected; [`run`] plays it on a [`Stage`]. Whatever the row is, these hold:
//! no byte is lost, out of order or invented; no stream that broke looks complete; another bastion with its session
//! and client notices nothing; whoever comes meanwhile is held and served in the end; every surface tells the same phase and
//! reason; and afterwards everything is as it was before.

mod clients;
mod database;
mod names;
mod network;
mod own;
mod path;
mod sshd;
mod stage;
mod stream;
mod surfaces;

use std::fmt::Debug;

use stage::Stage;
use stream::{Ended, Stream};
use surfaces::Said;

use crate::support::client::{Job, job};
use crate::support::eventually;

/// Something that goes wrong, and its end.
trait Trouble: Debug {
    fn begin(&self, stage: &mut Stage);
    fn end(&self, stage: &mut Stage);
}

impl<T: Trouble> Trouble for &T {
    fn begin(&self, stage: &mut Stage) {
        (*self).begin(stage);
    }

    fn end(&self, stage: &mut Stage) {
        (*self).end(stage);
    }
}

/// What is under way when it begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Moment {
    /// A session is dialled: the one that was there has just ended.
    Dialling,
    /// A session is there, and its first client comes.
    Opening,
    /// Clients are carried.
    Carrying,
}

/// What becomes of the clients that are carried, or come first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Streams {
    /// They go on.
    Survive,
    /// They stop, and go on once it is over.
    Pause,
    /// They are reset.
    Break,
}

/// What becomes of a client that comes meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Newcomer {
    /// It is served, soon or once it is over.
    Served,
    /// It is told why not, at once.
    Refused,
}

/// Phase and reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Why(&'static str, &'static str);

#[derive(Debug)]
struct Row<T> {
    fault: T,
    when: Moment,
    streams: Streams,
    /// How the session that was there is lost: one of these reasons, or none for not at all.
    lost: &'static [&'static str],
    /// What new sessions, opens or probes fail with as long as it lasts: one of these, or none for not at all.
    then: &'static [Why],
    newcomer: Newcomer,
}

/// How many streams are under way at a time.
const STREAMS: usize = 4;

fn run<T: Trouble>(stage: &mut Stage, row: &Row<T>) {
    eprintln!("--- {row:?}");
    let said = Said::by(stage);
    let count = if row.when == Moment::Carrying { STREAMS } else { 0 };
    let streams: Vec<Stream> = (0..count).map(|_| stage.stream()).collect();
    streams.iter().for_each(|stream| stream.wait_for_more(2));

    row.fault.begin(stage);
    if row.when == Moment::Dialling {
        stage.prod.kill_sessions();
    }
    let newcomer = (row.newcomer == Newcomer::Served).then(|| stage.stream());
    let broken = row.streams == Streams::Break;
    match row.streams {
        Streams::Survive => streams.iter().for_each(|stream| stream.wait_for_more(2)),
        Streams::Pause => streams.iter().for_each(stands_still),
        Streams::Break => {}
    }
    let mut why = None;
    if !row.lost.is_empty() {
        why = Some(said.wait_for_loss(stage, row.lost, if broken { count } else { 0 }));
    }
    if !row.then.is_empty() {
        why = Some(said.wait_for_failure(stage, row.then));
    }
    if let Some(why) = why {
        said.wait_for_page(stage, why);
    }
    if row.newcomer == Newcomer::Refused {
        let Why(phase, reason) = why.expect("somebody is refused for a reason");
        let job = stage.runtime.block_on(job(stage.daemon.address("echo")));
        let Job::Unanswered(text) = job else { panic!("it was not told why it is not served: {job:?}") };
        assert!(text.contains(&format!("{phase} {reason}: ")), "{text}");
    }
    stage.assert_bystander_untouched();
    let streams = if broken {
        for stream in streams {
            let ended = stream.ended(&stage.runtime);
            assert_eq!(ended, Ended::Broken(std::io::ErrorKind::ConnectionReset), "{row:?}");
        }
        Vec::new()
    } else {
        streams
    };

    row.fault.end(stage);
    stage.daemon.wait_up("prod");
    streams.into_iter().chain(newcomer).for_each(|stream| {
        stream.wait_for_more(2);
        stream.must_be_whole(&stage.runtime);
    });
    stage.stream().must_be_whole(&stage.runtime);
    if row.lost.is_empty() && row.when != Moment::Dialling {
        assert_eq!(said.losses(stage), [], "{row:?}");
    }
    stage.assert_bystander_untouched();
    stage.assert_nothing_left_behind();
}

/// It has not come further for twenty looks in a row.
fn stands_still(stream: &Stream) {
    let (mut before, mut looks) = (stream.answered(), 0);
    eventually("a stream stands still", || {
        assert!(!stream.has_ended(), "a stream ends that should stand still");
        looks = if stream.answered() == before { looks + 1 } else { 0 };
        before = stream.answered();
        (looks >= 20).then_some(())
    });
}
