//! Budgets from files: what is in `budgets/`, and what is not a budget.

use std::path::{Path, PathBuf};

use marlin_audit::run::read_budget;
use marlin_placement::audit::{Budget, Limit};
use marlin_placement::{Device, Direction};

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn read(text: &str) -> Result<Budget, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("budget.toml");
    std::fs::write(&path, text).unwrap();
    read_budget(&path).map_err(|error| error.to_string())
}

#[test]
fn the_designs_budget_is_the_one_in_the_repository() {
    let budget = read_budget(&repository().join("budgets/design.toml")).unwrap();
    assert_eq!(budget, Budget::design());
}

#[test]
fn a_limit_is_one_number_or_one_for_each_kind_of_memory() {
    let budget = read(
        "weight_copies = { discrete = 1.5 }\n\
         [load]\nallocated_bytes = 4_000_000_000\n\
         [decode.copies.device-to-host]\nbytes_per_token = 4\ncount_per_token = { unified = 0, discrete = 1 }\n",
    )
    .unwrap();
    let copies = budget.weight_copies.unwrap();
    assert_eq!((copies.on(Device::Unified), copies.on(Device::Discrete)), (None, Some(1.5)));
    assert_eq!(budget.load.allocated_bytes, Some(Limit::of(4e9)));
    let limits = budget.decode.copies[&Direction::DeviceToHost];
    assert_eq!(limits.bytes_per_token, Some(Limit::of(4.0)));
    assert_eq!(limits.count_per_token.unwrap().on(Device::Discrete), Some(1.0));
    assert_eq!(limits.bytes, None);
    assert_eq!(read("").unwrap(), Budget::default());
}

#[test]
fn what_is_no_limit_is_an_error_that_names_the_line_and_what_was_expected() {
    for (text, parts) in [
        (
            "allocation = 0",
            &["budget.toml:1:1: ", "unknown field `allocation`", "weight_copies"][..],
        ),
        (
            "[decode]\nallocs = 0",
            &["budget.toml:2:1: ", "unknown field `allocs`", "submissions_per_token"],
        ),
        ("[load]\nsubmissions_per_token = 1", &["unknown field `submissions_per_token`"]),
        ("[load.copies.host-to-device]\nbytes_per_token = 1", &["unknown field `bytes_per_token`"]),
        ("[decode.copies.sideways]\nbytes = 0", &["unknown variant `sideways`", "host-to-device"]),
        (
            "parameter_buffers = \"none\"",
            &["budget.toml:1:21: ", "string \"none\"", "a number of 0 or more"],
        ),
        ("parameter_buffers = true", &["boolean `true`", "a number of 0 or more"]),
        ("parameter_buffers = -1", &["`-1.0`", "a number of 0 or more"]),
        ("parameter_buffers = nan", &["NaN", "a number of 0 or more"]),
        ("weight_copies = { shared = 0 }", &["unknown field `shared`", "`unified`", "`discrete`"]),
        ("weight_copies = { unified = inf }", &["inf", "a number of 0 or more"]),
        ("decode = 3", &["invalid type: integer `3`"]),
        ("[decode", &["budget.toml:1:", "not a budget"]),
    ] {
        let error = read(text).unwrap_err();
        for part in parts {
            assert!(error.contains(part), "{text}: no {part:?} in\n{error}");
        }
        assert_eq!(error.lines().count(), 1, "{error}");
    }
    let missing = read_budget(Path::new("no/such/budget.toml")).unwrap_err().to_string();
    assert!(missing.contains("no/such/budget.toml: cannot be read"), "{missing}");
}
