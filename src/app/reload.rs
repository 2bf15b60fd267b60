//! Another configuration while the daemon runs: all of it is checked and bound first, and then the difference is applied. A
//! failure changes nothing.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::SystemTime;

use tracing::{error, info, warn};

use super::{Daemon, Staked, StartError, addresses, note_unused, stake, warn_of};
use crate::files;
use crate::ids::Name;
use crate::settings::plan::{DatabasePlan, Plan};
use crate::settings::{self, Problem, Settings, Surroundings};
use crate::snapshot::Stamp;
use crate::systemd;
use crate::telemetry::Telemetry;

impl Daemon {
    /// Reads the configuration anew, applies what is different, and tries at once every bastion that waits for its next
    /// attempt: whoever asks for this may have mended something that no file shows.
    pub(super) async fn reload(&mut self, surroundings: &Surroundings, telemetry: &Telemetry) {
        let at = Stamp(SystemTime::now());
        systemd::reloading().await;
        match self.prepare(surroundings).await {
            Ok((settings, claims)) => {
                settings.notes.iter().for_each(warn_of);
                self.apply(settings.plan, claims, telemetry);
                self.metrics.configuration_loaded(at);
                self.board.set_configuration(at, Vec::new());
                info!("the configuration has been reloaded");
            }
            Err(problems) => {
                for problem in &problems {
                    error!(problem, "the configuration is not reloaded, and stays as it was");
                }
                self.metrics.configuration_refused();
                self.board.set_configuration(at, problems);
            }
        }
        self.supervisor.dial_now();
        systemd::ready().await;
    }

    /// Everything that can fail.
    async fn prepare(&self, surroundings: &Surroundings) -> Result<(Settings, Staked), Vec<String>> {
        let state_dir_in_use = Some(self.plan.daemon.state_dir.clone());
        let surroundings = Surroundings { state_dir_in_use, ..surroundings.clone() };
        let read = files::read_aside(move || settings::load(&surroundings)).await;
        let read = read.map_err(|text| vec![format!("the configuration files: {text}")])?;
        let say = |problems: Vec<Problem>| problems.iter().map(ToString::to_string).collect::<Vec<_>>();
        let settings = read.map_err(say)?;
        let claims = self.stake_new(&settings.plan).map_err(|error| vec![error.to_string()])?;
        Ok((settings, claims))
    }

    fn apply(&mut self, mut plan: Plan, claims: Staked, telemetry: &Telemetry) {
        for (key, differs) in [
            ("http.listen", plan.http.listen != self.plan.http.listen),
            ("daemon.threads", plan.daemon.threads != self.plan.daemon.threads),
        ] {
            if differs {
                warn!(key, "needs a restart to change: the daemon goes on as it is");
            }
        }
        plan.http.listen = self.plan.http.listen;
        plan.daemon.threads = self.plan.daemon.threads;
        telemetry.change(&plan.log);
        self.allow_remote_status.store(plan.http.allow_remote_status, Ordering::Relaxed);
        self.memory.set_limit(plan.daemon.buffer_memory);
        self.say_added(&claims);
        self.supervisor.apply(&plan, claims);
        note_unused(&plan, self.claims.inherited());
        self.plan = plan;
    }

    fn say_added(&self, claims: &Staked) {
        let known = |name: &Name| self.plan.databases.iter().any(|database| database.name == *name);
        for (name, claims) in claims.iter().filter(|(name, _)| !known(name)) {
            info!(database = %name, listen = addresses(claims), "the database has been added");
        }
    }

    /// Claims the addresses of databases that are new, or listen elsewhere.
    fn stake_new(&self, plan: &Plan) -> Result<Staked, StartError> {
        let same = |new: &Arc<DatabasePlan>| {
            let mut running = self.plan.databases.iter();
            running.any(|old| old.name == new.name && old.forward.listen == new.forward.listen)
        };
        stake(&self.claims, plan.databases.iter().filter(|database| !same(database)))
    }
}
