//! What is measured, in the order in which it is told.

mod connections;
mod copy;
mod idle;
mod isolation;
mod outage;
mod pgbench;
mod transfer;

use crate::arguments::Plan;
use crate::peers::Forwarder;
use crate::report::{Figures, Sample};
use crate::stage::Stage;

#[derive(Clone, Copy)]
pub struct Case {
    pub name: &'static str,
    pub run: fn(&Stage, &Plan, &mut Figures),
}

pub const ALL: &[Case] = &[
    Case { name: "download-1", run: |stage, plan, figures| transfer::download(stage, plan, figures, 1) },
    Case { name: "download-8", run: |stage, plan, figures| transfer::download(stage, plan, figures, 8) },
    Case { name: "upload-1", run: |stage, plan, figures| transfer::upload(stage, plan, figures, 1) },
    Case { name: "upload-8", run: |stage, plan, figures| transfer::upload(stage, plan, figures, 8) },
    Case { name: "download-20ms", run: |stage, plan, figures| transfer::from_afar(stage, plan, figures, 20) },
    Case { name: "download-50ms", run: |stage, plan, figures| transfer::from_afar(stage, plan, figures, 50) },
    Case {
        name: "download-100ms",
        run: |stage, plan, figures| transfer::from_afar(stage, plan, figures, 100),
    },
    Case {
        name: "download-50ms-proxy",
        run: |stage, plan, figures| transfer::through_proxy(stage, plan, figures, 50),
    },
    Case { name: "copy", run: copy::rows },
    Case { name: "pgbench-1", run: |stage, plan, figures| pgbench::select(stage, plan, figures, 1) },
    Case { name: "pgbench-4", run: |stage, plan, figures| pgbench::select(stage, plan, figures, 4) },
    Case { name: "pgbench-16", run: |stage, plan, figures| pgbench::select(stage, plan, figures, 16) },
    Case { name: "connect", run: connections::that_ask },
    Case { name: "connect-listen", run: connections::that_listen },
    Case { name: "memory", run: connections::at_the_same_time },
    Case { name: "idle", run: idle::databases },
    Case { name: "outage", run: outage::bastion_killed },
    Case { name: "isolation", run: isolation::beside_others },
];

/// All, if no word is given. A word that is a case's whole name means that one alone.
pub fn matching(words: &[String]) -> Vec<Case> {
    let names = |word: &String, case: &Case| match ALL.iter().any(|case| case.name == word) {
        true => case.name == word,
        false => case.name.contains(word.as_str()),
    };
    let wanted = |case: &&Case| words.is_empty() || words.iter().any(|word| names(word, case));
    ALL.iter().filter(wanted).copied().collect()
}

/// Gives each forwarder its turn, as often as planned.
fn alternate(
    plan: &Plan,
    forwarders: &[Forwarder],
    figures: &mut Figures,
    mut measure: impl FnMut(&Forwarder) -> Vec<Sample>,
) {
    for _ in 0..plan.runs {
        for forwarder in forwarders {
            figures.note(forwarder.peer, &measure(forwarder));
        }
    }
}
