//! A network of its own for a part of a test: whatever is started in it sees no other. It is gone when the last thread and
//! process in it has ended, however they end.

use std::process::Command;
use std::sync::mpsc;
use std::thread;

use nix::sched::{CloneFlags, unshare};
use nix::unistd::{geteuid, gettid};

use super::account::find;

type Work = Box<dyn FnOnce() + Send>;

/// A room and the thread that lives in it.
pub struct Room {
    work: mpsc::Sender<Work>,
    thread: i32,
}

/// Runs `ip` and the like where the caller is.
pub fn system(program: &str, arguments: &str) {
    let output = Command::new(find(program)).args(arguments.split_ascii_whitespace()).output().unwrap();
    assert!(output.status.success(), "{program} {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Runs a test in a room of its own. Only root makes networks.
pub fn in_a_room(test: impl FnOnce() + Send + 'static) {
    if !geteuid().is_root() {
        eprintln!("not run: this test needs root");
        return;
    }
    let test = thread::spawn(|| {
        enter();
        test();
    });
    if let Err(panic) = test.join() {
        std::panic::resume_unwind(panic);
    }
}

fn enter() {
    unshare(CloneFlags::CLONE_NEWNET).unwrap();
    system("ip", "link set lo up");
}

impl Room {
    /// A room beside the caller's, with a cable between them.
    pub fn beside(here: &str, there: &str) -> Self {
        let (work, works) = mpsc::channel::<Work>();
        let (say, said) = mpsc::channel();
        thread::spawn(move || {
            enter();
            say.send(gettid().as_raw()).unwrap();
            for work in works {
                work();
            }
        });
        let room = Self { work, thread: said.recv().unwrap() };
        system("ip", &format!("link add there type veth peer name here netns {}", room.thread));
        system("ip", &format!("addr add {here} dev there"));
        system("ip", "link set there up");
        let there = there.to_owned();
        room.run(move || {
            system("ip", &format!("addr add {there} dev here"));
            system("ip", "link set here up");
        });
        room
    }

    /// Does something in it.
    pub fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let (say, done) = mpsc::channel();
        self.work.send(Box::new(move || say.send(work()).unwrap())).unwrap();
        done.recv().expect("it failed in the other room")
    }
}
