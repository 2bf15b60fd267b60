//! Which bastions and databases are examined.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::ids::Name;
use crate::settings::Plan;
use crate::settings::plan::{BastionPlan, DatabasePlan};

/// A database through one of its bastions.
#[derive(Clone, Debug)]
pub struct Way {
    /// The database.
    pub database: Arc<DatabasePlan>,
    /// The bastion.
    pub bastion: Name,
    /// How long the bastion may take to answer a channel open.
    pub open_timeout: std::time::Duration,
}

/// What is examined, in the order in which it is shown.
#[derive(Clone, Debug)]
pub struct Selection {
    /// Each jump before those behind it.
    pub bastions: Vec<Arc<BastionPlan>>,
    /// For each database its bastions, best first.
    pub ways: Vec<Way>,
}

impl Selection {
    /// What these names mean: a database, with all its bastions and their jumps; a bastion, with its jumps and the databases
    /// behind it. No name means everything.
    ///
    /// # Errors
    /// The first name that is none.
    pub fn of(plan: &Plan, names: &[String]) -> Result<Self, String> {
        let known = |name: &&String| {
            let mut all = plan.bastions.iter().map(|bastion| &bastion.name);
            let mut all = all.by_ref().chain(plan.databases.iter().map(|database| &database.name));
            all.any(|known| known.as_str() == name.as_str())
        };
        if let Some(unknown) = names.iter().find(|name| !known(name)) {
            return Err(unknown.clone());
        }
        let is_named = |name: &Name| names.is_empty() || names.iter().any(|named| named == name.as_str());
        let mut ways = Vec::new();
        let mut wanted: BTreeSet<&Name> = plan.bastions.iter().map(|bastion| &bastion.name).collect();
        wanted.retain(|name| is_named(name));
        for database in &plan.databases {
            for name in &database.bastions {
                let Some(bastion) = plan.bastions.iter().find(|bastion| bastion.name == *name) else {
                    continue;
                };
                if is_named(&database.name) || is_named(name) {
                    wanted.insert(&bastion.name);
                    let (database, bastion, open_timeout) =
                        (Arc::clone(database), bastion.name.clone(), bastion.open_timeout);
                    ways.push(Way { database, bastion, open_timeout });
                }
            }
        }
        let mut bastions: Vec<Arc<BastionPlan>> = Vec::new();
        for bastion in plan.bastions.iter().filter(|bastion| wanted.contains(&bastion.name)) {
            for hop in plan.jumps(bastion).into_iter().chain([Arc::clone(bastion)]) {
                if !bastions.iter().any(|there| there.name == hop.name) {
                    bastions.push(hop);
                }
            }
        }
        Ok(Self { bastions, ways })
    }
}
