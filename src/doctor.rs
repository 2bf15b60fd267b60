//! Goes every way once, from key files to a query, and says of each stage how it went: what a person asks for who wants to
//! know why something does not work.
//!
//! It goes the ways of the daemon by the daemon's own code ([`crate::session`], [`mod@crate::probe`]), over sessions of its
//! own: it needs no daemon, disturbs none, listens nowhere, and stores nothing. All bastions are examined side by side, each
//! as soon as its jump has been, and so are the databases behind them.

mod advice;
mod bastion;
mod check;
mod database;
mod progress;
mod selection;
mod side;
mod verdict;

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};

use tokio::sync::{Mutex, watch};
use tokio::task::JoinSet;

use crate::ids::Name;
use crate::milestones::Milestones;
use crate::session::Visit;
use crate::settings::Plan;
use crate::settings::plan::BastionPlan;
pub use advice::RunsAs;
pub use check::{Check, Kind, Outcome, Stage, Subject};
pub use progress::Progress;
pub use selection::{Selection, Way};
pub use side::Side;
pub use verdict::{Finding, Verdict};

/// A bastion that we are logged in to.
struct Arrived {
    plan: Arc<BastionPlan>,
    outer: Option<Arc<Self>>,
    visit: std::sync::Mutex<Arc<Visit>>,
    /// Whoever opens a channel waits for his turn: sshd's words about a refusal do not say which open they are about.
    turn: Arc<Mutex<()>>,
}

impl Arrived {
    fn visit(&self) -> Arc<Visit> {
        Arc::clone(&self.visit.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A fresh session for those whose turn comes next, since on this one the bastion still owes an answer that might be
    /// taken for theirs. Where none can be had the old one has to do.
    async fn renew(&self) {
        let _turn = match &self.outer {
            Some(outer) => Some(outer.turn.lock().await),
            None => None,
        };
        let outer = self.outer.as_ref().map(|outer| outer.visit());
        if let Ok(visit) = Visit::make(&self.plan, outer, &Milestones::default()).await {
            *self.visit.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(visit);
        }
    }
}

/// What has become of a bastion: nothing yet, or where we are then, unless we did not get there.
type News = watch::Receiver<Option<Option<Arc<Arrived>>>>;

async fn hear(mut news: News) -> Option<Arc<Arrived>> {
    news.wait_for(Option::is_some).await.ok().and_then(|arrived| arrived.clone().flatten())
}

/// The checks of a selection, none of them made yet.
#[must_use]
pub fn prepare(plan: &Plan, selection: &Selection) -> Arc<Progress> {
    let bastions = selection.bastions.iter().map(|bastion| bastion::check(plan, selection, bastion));
    let databases = selection.ways.iter().map(database::check);
    Progress::new(bastions.chain(databases).collect())
}

/// Makes the checks that [`prepare`] has laid out, each within the time-outs of the configuration. Must be called within a
/// runtime. What is under way is given up when the future is dropped.
pub async fn examine(selection: &Selection, runs_as: &RunsAs, progress: &Arc<Progress>) {
    let mut tasks = JoinSet::new();
    let mut reached: BTreeMap<Name, News> = BTreeMap::new();
    let mut records = progress.records();
    // A jump comes before those behind it.
    for (plan, record) in selection.bastions.iter().cloned().zip(&mut records) {
        let outer = plan.jump.as_ref().and_then(|jump| reached.get(jump)).cloned();
        let (tell, news) = watch::channel(None);
        reached.insert(plan.name.clone(), news);
        let runs_as = runs_as.clone();
        tasks.spawn(async move {
            let outer = match outer {
                None => Some(None),
                Some(news) => hear(news).await.map(Some),
            };
            let arrived = match outer {
                Some(outer) => bastion::examine(&plan, outer, &record, &runs_as).await,
                None => None,
            };
            record.close();
            tell.send_replace(Some(arrived));
        });
    }
    let mut logins = BTreeMap::new();
    for (way, record) in selection.ways.iter().cloned().zip(records) {
        let Some(news) = reached.get(&way.bastion).cloned() else { continue };
        let login = logins.entry(way.database.name.clone()).or_insert_with(|| database::login(&way.database));
        let (login, runs_as) = (login.clone(), runs_as.clone());
        tasks.spawn(async move {
            let login = login.obtain(&record, &runs_as).await;
            if let Some(arrived) = hear(news).await {
                database::examine(&way, &arrived, login.as_ref(), &record, &runs_as).await;
            }
            record.close();
        });
    }
    while tasks.join_next().await.is_some() {}
    // Those behind a jump first.
    for plan in selection.bastions.iter().rev() {
        if let Some(arrived) = reached.get(&plan.name).and_then(|news| news.borrow().clone()).flatten() {
            arrived.visit().close().await;
        }
    }
}

#[cfg(test)]
mod tests;
