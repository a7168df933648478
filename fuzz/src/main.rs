//! The first byte chooses whose input the others are.
#![no_main]

use jouleward::node::fuzzing;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Some((whose, bytes)) = bytes.split_first() else {
        return;
    };
    match whose % 4 {
        0 => fuzzing::cgroup(bytes),
        1 => fuzzing::podresources(bytes),
        2 => fuzzing::checkpoint(bytes),
        _ => fuzzing::nvml(bytes),
    }
});
