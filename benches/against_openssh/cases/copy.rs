//! A large result in PostgreSQL's protocol, so that whatever watches it has something to see.

use std::process::Stdio;
use std::time::Instant;

use super::alternate;
use crate::arguments::Plan;
use crate::peers::{Target, Task, start_all};
use crate::report::Figures;
use crate::stage::Stage;
use crate::support::client::psql;
use crate::support::postgres::TRUSTED;
use crate::usage::cpu_seconds;

/// Characters of a row; its end of line makes them 60 bytes.
const ROW: u64 = 59;

pub fn rows(stage: &Stage, plan: &Plan, figures: &mut Figures) {
    let task = Task::new(&stage.bastion, vec![Target::Postgres(stage.postgres.port)]);
    let forwarders = start_all(plan, &task);
    let sql = format!("COPY (SELECT repeat('x', {ROW}) FROM generate_series(1, {})) TO STDOUT", plan.rows);
    let gigabytes = (plan.rows * (ROW + 1)) as f64 / 1e9;
    alternate(plan, &forwarders, figures, |forwarder| {
        let (before, start) = (cpu_seconds(forwarder.pid()), Instant::now());
        let mut psql = psql(forwarder.address(), &format!("user={TRUSTED} sslmode=disable"), &sql);
        assert!(psql.stdout(Stdio::null()).status().unwrap().success());
        let seconds = start.elapsed().as_secs_f64();
        let cpu = cpu_seconds(forwarder.pid()) - before;
        vec![("speed", "MB/s", gigabytes * 1e3 / seconds), ("processor", "s/GB", cpu / gigabytes)]
    });
}
