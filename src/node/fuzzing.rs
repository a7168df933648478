//! What others write, as arbitrary bytes: for the coverage-guided fuzzer of `fuzz/`, and for
//! the property test below. Each panics where something is wrong.

use super::allocations::Allocations;
use super::attribution::Owner;
use super::cgroup;
use super::checkpoint::Checkpoint;
use super::devices::{Devices, Hold, Part, claims};
use super::meter::{Look, Meter};
use super::mig::{Instance, Mig};
use super::nvml::{EnergySource, GpuInfo};
use super::podresources::ListResponse;
use prost::Message;
use std::collections::{BTreeMap, BTreeSet};

/// Lines of /proc/PID/cgroup.
pub fn cgroup(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Some(found) = cgroup::parse(&text) {
        let is_of_uid = |c: char| c.is_ascii_hexdigit() || c == '-';
        assert!(found.pod_uid.chars().all(is_of_uid), "{found:?}");
    }
}

/// The kubelet's answer: every device is held by somebody or counted as unknown.
pub fn podresources(bytes: &[u8]) {
    let Ok(answer) = ListResponse::decode(bytes) else {
        return;
    };
    let part = Part {
        gpu: "GPU-0".to_owned(),
        number: Some(1),
        slices: Some(1),
    };
    let devices = Devices {
        by_minor: BTreeMap::from([(0, "GPU-0".to_owned())]),
        instances: BTreeMap::from([("MIG-0".to_owned(), part)]),
    };
    let claims = claims(&answer);
    let (holders, unknown) = devices.holders(&claims);
    let holds = holders.values().flat_map(BTreeMap::values);
    let held: u64 = holds.map(|hold| hold.replicas).sum();
    assert_eq!(held + unknown as u64, claims.len() as u64);
}

/// A checkpoint file: what is taken up sums to its counters, and can be gone on with.
pub fn checkpoint(bytes: &[u8]) {
    let checkpoint = Checkpoint::new("/nowhere".into(), "boot".to_owned());
    if let Some((mut meter, mut allocations)) = checkpoint.taken_up(bytes) {
        meter.resume(true);
        allocations.resume(true, 1_000_000);
        allocations.observe(&BTreeMap::new(), 2_000_000, 2_000_000, |_, _| None);
        meter.settle(&allocations, 3_000_000);
        assert!(meter.is_sound());
    }
}

/// What NVML answers, look by look: no joule is invented and none is lost, whatever it is.
pub fn nvml(bytes: &[u8]) {
    let mut bytes = bytes.iter().copied();
    let mut next = move || bytes.next();
    let info = |uuid: &str, source| GpuInfo {
        uuid: uuid.to_owned(),
        index: 0,
        minor: 0,
        model: String::new(),
        pci_bus_id: String::new(),
        driver: String::new(),
        limit_milliwatts: Some(400_000),
        default_limit_milliwatts: None,
        source,
    };
    let mut meter = Meter::default();
    meter.add_gpu(info("GPU-0", EnergySource::Counter), Some(50_000));
    meter.add_gpu(info("GPU-1", EnergySource::Power), None);
    let mut allocations = Allocations::new(0);
    let (mut now, mut before, mut looks) = (0_u64, 0, 0);
    while let Some(kind) = next() {
        let mut number =
            |bytes: u32| (0..bytes).fold(0, |n, _| n << 8 | u64::from(next().unwrap_or(0)));
        now += number(3) + 1;
        if kind & 0x80 != 0 {
            // Whoever is held by the kubelet's word from now on.
            let names = ["a", "b", "c"].iter().enumerate();
            let holders = names.filter(|(bit, _)| kind >> bit & 1 == 1);
            let holders = holders.map(|(_, name)| {
                let holder = super::attribution::Holder {
                    pod: (*name).to_owned(),
                    instance: (kind & 8 != 0).then(|| "MIG-0".to_owned()),
                    ..Default::default()
                };
                let hold = Hold {
                    replicas: u64::from(kind >> 4 & 3) + 1,
                    whole: kind & 0x48 == 0x40,
                };
                (holder, hold)
            });
            let list = BTreeMap::from([("GPU-0".to_owned(), holders.collect())]);
            allocations.observe(&list, now, now, |_, pod| Some(pod.to_owned()));
            meter.settle(&allocations, now);
        } else {
            let uuid = if kind & 1 == 0 { "GPU-0" } else { "GPU-1" };
            let owner = |bit: u8| match kind >> bit & 3 {
                0 => Owner::Host,
                n => Owner::Pod(["a", "b", "c"][usize::from(n) - 1].to_owned()),
            };
            let look = Look {
                read_at: None,
                energy_millijoules: (kind & 2 == 0).then(|| number(6)),
                power_milliwatts: (kind & 4 == 0).then(|| number(4)),
                busy: kind & 8 != 0,
                at_rest: kind & 16 != 0,
                contexts: BTreeSet::from([owner(3)]),
                activity: BTreeMap::from([(owner(4), number(1)), (owner(5), number(1))]),
                mig: (kind & 32 != 0).then(|| mig(number(2), owner(4))),
                mps: kind & 64 != 0,
                limit_milliwatts: None,
            };
            meter.look(uuid, look, now);
            looks += 1;
        }
        assert!(meter.is_sound(), "the parts are the counters");
        let sum: u64 = meter.gpus().map(|(_, totals)| totals.energy.0).sum();
        assert!(sum >= before, "nothing falls");
        before = sum;
    }
    // 1.5 times the limit, for as long as it was and two steps of the counter more a look.
    let most = 600 * (2 * now + looks * 200_000);
    assert!(before <= most, "{before} µJ in {now} µs");
}

fn mig(bits: u64, owner: Owner) -> Mig {
    let instance = Instance {
        slices: bits & 7,
        busy: bits & 8 != 0,
        contexts: BTreeSet::from([owner]),
        activity: (bits & 16 != 0).then_some(bits >> 5 & 1023),
    };
    Mig {
        slices: 7,
        instances: BTreeMap::from([("MIG-0".to_owned(), instance)]),
    }
}

#[cfg(test)]
mod tests {
    proptest::proptest! {
        #[test]
        fn no_bytes_of_others_make_the_meter_panic_or_miscount(
            bytes in proptest::collection::vec(0_u8.., 0..600),
        ) {
            super::cgroup(&bytes);
            super::podresources(&bytes);
            super::checkpoint(&bytes);
            super::nvml(&bytes);
        }
    }
}
