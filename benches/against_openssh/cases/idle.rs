//! Nobody there: what it costs to keep the ways to twenty databases open.

use std::thread;

use crate::arguments::Plan;
use crate::peers::{Forwarder, Target, Task, start_all};
use crate::report::Figures;
use crate::stage::Stage;
use crate::usage::{cpu_seconds, memory};

const DATABASES: usize = 20;

/// They do not disturb each other, so all are watched at the same time.
pub fn databases(stage: &Stage, plan: &Plan, figures: &mut Figures) {
    let task = Task::new(&stage.bastion, vec![Target::Postgres(stage.postgres.port); DATABASES]);
    let forwarders = start_all(plan, &task);
    for _ in 0..plan.runs.min(3) {
        let used = || forwarders.iter().map(|forwarder| cpu_seconds(forwarder.pid())).collect::<Vec<_>>();
        let before = used();
        thread::sleep(plan.idle_window);
        for ((forwarder, before), after) in forwarders.iter().zip(before).zip(used()) {
            note(plan, figures, forwarder, after - before);
        }
    }
}

fn note(plan: &Plan, figures: &mut Figures, forwarder: &Forwarder, cpu: f64) {
    let memory = memory(forwarder.pid());
    let samples = [
        ("resident", "kB", memory.resident),
        ("proportional", "kB", memory.proportional),
        ("processor", "ms per minute", cpu * 60e3 / plan.idle_window.as_secs_f64()),
    ];
    figures.note(forwarder.peer, &samples);
}
