//! The analysis: values flow through assignments, calls, fields and returns; what happens to
//! them is recorded; in the end every event is attributed to the buffers it concerns.
//!
//! Each function is evaluated once with symbolic parameters ([`eval`]). Its [`summary`] is applied
//! at its calls, so that wrappers, dispatch helpers and constructors are seen through; a few rounds
//! over all functions cover wrappers of wrappers. Fields and globals are held in one heap and looked
//! up when all functions are done ([`attribute`]).

mod apply;
mod assign;
pub(crate) mod attribute;
mod bind;
mod calls;
mod constant;
mod copies;
mod creation;
pub(crate) mod eval;
mod expr;
mod host_data;
pub(crate) mod hot;
mod mentions;
pub(crate) mod project;
pub(crate) mod summary;
mod unresolved;
pub(crate) mod value;

use rayon::prelude::*;

use project::Project;
use summary::Summary;

/// How many wrappers may be nested in one another.
const ROUNDS: usize = 5;

/// Evaluates every function until its callees' summaries are in.
pub(crate) fn summaries<'s>(project: &Project<'s>) -> Vec<Summary<'s>> {
    let count = project.functions.len() as u32;
    let mut current: Vec<Summary<'s>> = vec![Summary::default(); count as usize];
    let mut stale: Vec<u32> = (0..count).collect();
    for _ in 0..ROUNDS {
        let fresh: Vec<(u32, Summary<'s>)> =
            stale.par_iter().map(|&id| (id, eval::evaluate(project, &current, id))).collect();
        let mut changed = vec![false; count as usize];
        for (id, summary) in fresh {
            let old = &current[id as usize];
            changed[id as usize] = (summary.is_informative() || old.is_informative())
                && (summary.returns != old.returns
                    || summary.events.len() != old.events.len()
                    || summary.stores.len() != old.stores.len());
            current[id as usize] = summary;
        }
        // Calls are only known after the first round, so the stale set follows from it.
        stale = (0..count)
            .filter(|&id| {
                current[id as usize].calls.iter().any(|edge| changed[edge.callee as usize])
            })
            .collect();
        if stale.is_empty() {
            break;
        }
    }
    current
}
