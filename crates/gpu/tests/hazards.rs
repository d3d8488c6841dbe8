//! Where barriers are needed: against the definition, on arbitrary command lists.

use std::any::Any;
use std::sync::Arc;

use marlin_gpu::hazards::{self, Access, Hazards};
use marlin_gpu::{Command, CommandList, Region};
use marlin_kernels::bytes::{CopyBytes, CopyBytesArgs, FillBytes, FillBytesArgs};
use marlin_kernels::{Allocation, Grid, Launch, View, ViewMut};
use proptest::prelude::*;

const BYTES: u64 = 24;

#[derive(Debug)]
struct Memory(String);

impl Allocation for Memory {
    fn label(&self) -> &str {
        &self.0
    }
    fn bytes(&self) -> u64 {
        BYTES
    }
    fn writable(&self) -> bool {
        true
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}

fn memory(label: &str) -> Arc<dyn Allocation> {
    Arc::new(Memory(label.to_owned()))
}

fn region(allocation: &Arc<dyn Allocation>, offset: u64, bytes: u64) -> Region {
    Region { allocation: allocation.clone(), offset, bytes }
}

/// A dispatch that reads the first region and writes the second.
fn dispatch(from: &Region, to: &Region) -> Command {
    let launcher = CopyBytes {
        source: View::new(&from.allocation, from.offset, from.bytes as usize).unwrap(),
        destination: ViewMut::new(&to.allocation, to.offset, to.bytes as usize).unwrap(),
        args: CopyBytesArgs { count: 0 },
    };
    Command::Dispatch(launcher.dispatch(Grid::x(1, 32)))
}

fn writing(to: &Region) -> Command {
    let launcher = FillBytes {
        destination: ViewMut::new(&to.allocation, to.offset, to.bytes as usize).unwrap(),
        args: FillBytesArgs { count: 0, value: 0, unused: 0 },
    };
    Command::Dispatch(launcher.dispatch(Grid::x(1, 32)))
}

fn list(commands: impl IntoIterator<Item = Command>) -> CommandList {
    let mut list = CommandList::new("test");
    for command in commands {
        list.push(command);
    }
    list
}

fn labels(list: &CommandList) -> Vec<Vec<String>> {
    let named = |one: Vec<Arc<dyn Allocation>>| one.iter().map(|a| a.label().to_owned()).collect();
    hazards::barriers(list).into_iter().map(named).collect()
}

#[test]
fn a_reader_waits_for_what_it_reads_and_the_barrier_names_everything_written() {
    let [x, q, k, y] = ["x", "q", "k", "y"].map(memory);
    let whole = |a| region(a, 0, BYTES);
    // Two products of the same input overlap; what reads one of them waits, and then need not wait for the other.
    let list = list([
        dispatch(&whole(&x), &whole(&q)),
        dispatch(&whole(&x), &whole(&k)),
        dispatch(&whole(&q), &whole(&y)),
        dispatch(&whole(&k), &whole(&x)),
    ]);
    assert_eq!(labels(&list), [vec![], vec![], vec!["q", "k"], vec![]] as [Vec<&str>; 4]);
}

#[test]
fn a_writer_waits_for_earlier_readers_and_writers() {
    let [x, y] = ["x", "y"].map(memory);
    let whole = |a| region(a, 0, BYTES);
    let after_read = list([dispatch(&whole(&x), &whole(&y)), writing(&whole(&x))]);
    assert_eq!(labels(&after_read)[1], ["x", "y"]);
    let after_write = list([writing(&whole(&x)), writing(&whole(&x))]);
    assert_eq!(labels(&after_write)[1], ["x"]);
}

#[test]
fn readers_and_ranges_apart_overlap() {
    let [x, y] = ["x", "y"].map(memory);
    let halves = [region(&y, 0, 8), region(&y, 8, 8)];
    let list = list([
        dispatch(&region(&x, 0, 8), &halves[0]),
        dispatch(&region(&x, 0, 8), &halves[1]),
        Command::Fill { region: region(&y, 16, 8), value: 1 },
        writing(&region(&x, 0, 0)),
    ]);
    assert!(labels(&list).iter().all(Vec::is_empty));
}

#[test]
fn nothing_waits_for_what_is_settled() {
    let x = memory("x");
    let command = writing(&region(&x, 0, BYTES));
    let mut hazards = Hazards::new();
    assert!(hazards.before(&command).is_empty());
    hazards.settle();
    assert!(hazards.before(&command).is_empty());
    assert_eq!(hazards.before(&command).len(), 1);
}

/// An allocation's index, offset and bytes.
type Place = (usize, u64, u64);

/// Commands over a few allocations: kind, and where each reads and writes.
fn arbitrary_commands() -> impl Strategy<Value = Vec<(u8, [Place; 2])>> {
    let place = (0..4usize, 0..BYTES)
        .prop_flat_map(|(allocation, offset)| (Just(allocation), Just(offset), 0..=BYTES - offset));
    prop::collection::vec((0..4u8, [place.clone(), place]), 0..12)
}

fn command(memories: &[Arc<dyn Allocation>], kind: u8, places: [Place; 2]) -> Command {
    let [from, to] = places.map(|(index, offset, bytes)| region(&memories[index], offset, bytes));
    match kind {
        0 => dispatch(&from, &to),
        1 => writing(&to),
        2 => Command::Copy { source: from, destination: to },
        _ => Command::Fill { region: to, value: 7 },
    }
}

proptest! {
    #[test]
    fn barriers_are_enough_and_none_is_one_too_many(commands in arbitrary_commands()) {
        let memories: Vec<_> = ["a", "b", "c", "d"].into_iter().map(memory).collect();
        let list = list(commands.iter().map(|(kind, places)| command(&memories, *kind, *places)));
        let accesses: Vec<Vec<Access>> = list.commands().iter().map(hazards::accesses).collect();
        let barriers = hazards::barriers(&list);

        // Enough: between two commands of which one must wait for the other there is a barrier, and one that
        // names the memory if the first one wrote it.
        let mut pairs = Vec::new();
        for later in 0..accesses.len() {
            for earlier in 0..later {
                let mut must_wait = false;
                for first in &accesses[earlier] {
                    for second in accesses[later].iter().filter(|second| second.conflicts(first)) {
                        must_wait = true;
                        let between = &barriers[earlier + 1..=later];
                        let names = |named: &Vec<Arc<dyn Allocation>>| {
                            named.iter().any(|a| Arc::ptr_eq(a, &second.allocation))
                        };
                        prop_assert!(between.iter().any(|named| !named.is_empty()));
                        if first.writes {
                            prop_assert!(between.iter().any(names));
                        }
                    }
                }
                if must_wait {
                    pairs.push((earlier, later));
                }
            }
        }

        // None too many: the fewest points that lie in all intervals between such pairs, by taking the earliest end
        // each time.
        let mut fewest = 0;
        let mut last = None;
        for (earlier, later) in pairs {
            if last.is_none_or(|last| last <= earlier) {
                fewest += 1;
                last = Some(later);
            }
        }
        let found = barriers.iter().filter(|named| !named.is_empty()).count();
        prop_assert_eq!(found, fewest);

        // Nothing is named that nobody used before.
        for (index, named) in barriers.iter().enumerate() {
            for one in named {
                prop_assert!(accesses[..index].iter().flatten().any(|a| Arc::ptr_eq(&a.allocation, one)));
            }
        }
    }
}
