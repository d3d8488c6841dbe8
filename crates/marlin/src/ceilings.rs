//! What this machine can do at most, measured once and remembered.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use metal_marlin::pull::Cache;
use metal_marlin::{Ceilings, Model};
use serde::{Deserialize, Serialize};

/// One device's ceilings, as they are kept in the cache folder.
#[derive(Clone, Copy, Serialize, Deserialize)]
struct Kept {
    read_bytes_per_s: f64,
    multiply_adds_per_s: f64,
    #[serde(default)]
    vector_multiply_adds_per_s: Option<f64>,
}

/// What was measured for the model's device before, on this machine.
pub(crate) fn remembered(model: &Model) -> Option<Ceilings> {
    let kept = *read().get(&key(model))?;
    let Kept { read_bytes_per_s, multiply_adds_per_s, vector_multiply_adds_per_s } = kept;
    Some(Ceilings { read_bytes_per_s, multiply_adds_per_s, vector_multiply_adds_per_s })
}

/// Keeps the best ever seen: whatever else runs on the machine can only make it look slower.
pub(crate) fn remember(model: &Model, measured: &[Ceilings]) {
    let best = |of: fn(&Ceilings) -> Option<f64>| {
        measured.iter().chain(&remembered(model)).filter_map(of).reduce(f64::max)
    };
    let (Some(read_bytes_per_s), Some(multiply_adds_per_s)) =
        (best(|c| Some(c.read_bytes_per_s)), best(|c| Some(c.multiply_adds_per_s)))
    else {
        return;
    };
    let vector_multiply_adds_per_s = best(|c| c.vector_multiply_adds_per_s);
    let kept = Kept { read_bytes_per_s, multiply_adds_per_s, vector_multiply_adds_per_s };
    let mut all = read();
    all.insert(key(model), kept);
    // Whoever cannot remember measures again.
    if let (Some(path), Ok(text)) = (path(), serde_json::to_string_pretty(&all)) {
        let _ = path.parent().map(fs::create_dir_all);
        let _ = fs::write(path, text);
    }
}

/// Measures, which takes about a second, and remembers.
fn measure(model: &Model) -> Ceilings {
    let measured = model.measure_ceilings();
    remember(model, &[measured]);
    measured
}

/// What was measured before, or else what is measured now.
pub(crate) fn known(model: &Model) -> Ceilings {
    remembered(model).unwrap_or_else(|| measure(model))
}

fn read() -> BTreeMap<String, Kept> {
    let text = path().and_then(|path| fs::read_to_string(path).ok());
    text.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default()
}

fn path() -> Option<PathBuf> {
    Some(Cache::of_user().ok()?.root().join("ceilings.json"))
}

/// Cache folders are shared between machines; what is measured on one means nothing on another.
fn key(model: &Model) -> String {
    let host = fs::read_to_string("/etc/machine-id").unwrap_or_default();
    format!("{} {} {}", model.device(), model.device_description(), host.trim())
}
