//! What a namespace's records came to, once they are put away: one line a budget and day. A ledger
//! adds up to the same with the lines as it did with the records.

use super::account::Entry;
use crate::carbon::Milligrams;
use jiff::civil::Date;
use std::collections::BTreeMap;
use std::ops::AddAssign;

/// What jobs of one budget came to on one day.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DaySum {
    /// Jobs that burned last on this day.
    pub jobs: i64,
    /// Booked to this day.
    pub charged: Milligrams,
    /// Given back by jobs that burned last on this day.
    pub refunded: Milligrams,
    /// Burned beyond reservations by jobs that burned last on this day.
    pub overrun: Milligrams,
}

impl AddAssign for DaySum {
    fn add_assign(&mut self, other: Self) {
        self.jobs += other.jobs;
        self.charged += other.charged;
        self.refunded += other.refunded;
        self.overrun += other.overrun;
    }
}

/// A job's line of one budget's ledger as sums by day. One that burned nothing is counted on
/// `ended`, the day of its end, and has given nothing back that a period would know of.
pub fn by_day(entry: &Entry, ended: Date) -> BTreeMap<Date, DaySum> {
    let mut days: BTreeMap<Date, DaySum> = BTreeMap::new();
    for charge in &entry.charges {
        days.entry(charge.day).or_default().charged += charge.mass;
    }
    let last = entry.last_day();
    let end = days.entry(last.unwrap_or(ended)).or_default();
    end.jobs += 1;
    if last.is_some() {
        end.refunded += entry.refund().or_zero();
        end.overrun += entry.overrun();
    }
    days
}

#[cfg(test)]
mod tests {
    use super::super::account::{Book, Charge};
    use super::super::policy::Policy;
    use super::super::{Fiscal, Period};
    use super::*;
    use jiff::Timestamp;
    use jiff::tz::TimeZone;
    use proptest::prelude::*;

    fn periods() -> impl Strategy<Value = Period> {
        let fiscal = Fiscal {
            months: 3,
            first_month: 2,
            first_day: 15,
        };
        prop_oneof![
            Just(Period::Day(TimeZone::UTC)),
            Just(Period::Week(TimeZone::UTC)),
            Just(Period::Month(TimeZone::UTC)),
            Just(Period::Fiscal(TimeZone::UTC, fiscal)),
            (1_u16..40).prop_map(|days| Period::Rolling(TimeZone::UTC, days)),
        ]
    }

    fn entry(uid: usize, reserved: i64, charges: &[(i32, i64)]) -> Entry {
        let first: Date = "2026-10-01".parse().unwrap();
        let day = |n: i32| first.checked_add(jiff::Span::new().days(n)).unwrap();
        let mut by_day: BTreeMap<Date, Milligrams> = BTreeMap::new();
        for (n, mass) in charges {
            *by_day.entry(day(*n)).or_default() += Milligrams(*mass);
        }
        let charges = by_day.into_iter();
        Entry {
            uid: uid.to_string(),
            reserved: Milligrams(reserved),
            charges: charges.map(|(day, mass)| Charge { day, mass }).collect(),
            settled: true,
        }
    }

    proptest! {
        #[test]
        fn whatever_is_put_away_a_ledger_adds_up_to_the_same(
            jobs in proptest::collection::vec(
                (0_i64..500, proptest::collection::vec((0_i32..70, 1_i64..400), 0..4), any::<bool>()),
                0..20,
            ),
            period in periods(),
            hours in 0_i64..2000,
            carry_over: bool,
        ) {
            let since: Timestamp = "2026-09-01T00:00:00Z".parse().unwrap();
            let now = since + jiff::SignedDuration::from_hours(hours);
            let policy = Policy { period, carry_over, ..Policy::monthly(Milligrams(5_000)) };
            let (mut whole, mut rest) = (Book::default(), Book::default());
            let mut lines: BTreeMap<Date, DaySum> = BTreeMap::new();
            for (number, (reserved, charges, away)) in jobs.iter().enumerate() {
                let entry = entry(number, *reserved, charges);
                if *away {
                    for (day, sum) in by_day(&entry, "2026-10-05".parse().unwrap()) {
                        *lines.entry(day).or_default() += sum;
                    }
                } else {
                    rest.entries.push(entry.clone());
                }
                whole.entries.push(entry);
            }
            rest.put_away = lines.into_iter().collect();
            prop_assert_eq!(
                policy.totals(&whole, Some(since), now),
                policy.totals(&rest, Some(since), now)
            );
            let jobs_away: i64 = rest.put_away.iter().map(|(_, sum)| sum.jobs).sum();
            prop_assert_eq!(
                usize::try_from(jobs_away).unwrap() + rest.entries.len(),
                whole.entries.len()
            );
        }
    }
}
