//! The arithmetic of a budget's ledger.
//!
//! Totals are a pure function of the reservations and of the grants still in flight, each
//! job counted once by UID. Nothing is added to a running total that could be added
//! twice, so any leader that reads the same objects gets the same figures.

use super::period::Period;
use super::policy::Policy;
use super::statement::DaySum;
use crate::carbon::Milligrams;
use jiff::Timestamp;
use jiff::civil::Date;
use std::collections::{BTreeMap, HashSet};

/// Grams booked to one day of a budget's time zone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Charge {
    pub day: Date,
    pub mass: Milligrams,
}

/// One job's line in a budget's ledger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub uid: String,
    /// What was set aside when it was granted.
    pub reserved: Milligrams,
    /// What it was measured to have emitted so far, by day.
    pub charges: Vec<Charge>,
    /// True once the job has ended and its energy is known: nothing stays set aside.
    pub settled: bool,
}

impl Entry {
    /// All that was charged, whenever.
    pub fn charged(&self) -> Milligrams {
        self.charges.iter().map(|charge| charge.mass).sum()
    }

    /// What is still set aside: the reservation, drawn down by what was measured.
    pub fn outstanding(&self) -> Milligrams {
        if self.settled {
            Milligrams(0)
        } else {
            (self.reserved - self.charged()).or_zero()
        }
    }

    /// What it burned beyond what was set aside.
    pub fn overrun(&self) -> Milligrams {
        (self.charged() - self.reserved).or_zero()
    }

    /// The day that it was booked to last; `None` where it burned nothing.
    pub fn last_day(&self) -> Option<Date> {
        let burned = self.charges.iter().filter(|c| c.mass > Milligrams(0));
        burned.map(|charge| charge.day).max()
    }

    /// What settling gave back (negative: the job burned more than was reserved).
    pub fn refund(&self) -> Milligrams {
        if self.settled {
            self.reserved - self.charged()
        } else {
            Milligrams(0)
        }
    }
}

/// A grant that is committed to the budget's status, but whose reservation may not exist
/// yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Granting {
    pub uid: String,
    pub mass: Milligrams,
}

/// All that is known of one budget's jobs.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Book {
    pub entries: Vec<Entry>,
    pub granting: Vec<Granting>,
    /// What jobs came to whose records are put away.
    pub put_away: Vec<(Date, DaySum)>,
}

impl Book {
    /// What was charged, by day; each job once.
    pub fn charged_by_day(&self) -> BTreeMap<Date, Milligrams> {
        let mut days: BTreeMap<Date, Milligrams> = BTreeMap::new();
        let mut known: HashSet<&str> = HashSet::new();
        for entry in self.entries.iter().filter(|entry| known.insert(&entry.uid)) {
            for charge in &entry.charges {
                *days.entry(charge.day).or_default() += charge.mass;
            }
        }
        for (day, sum) in &self.put_away {
            *days.entry(*day).or_default() += sum.charged;
        }
        days
    }
}

/// Where a budget stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Totals {
    /// What may be emitted in this period, what was carried over included.
    pub limit: Milligrams,
    /// Of that, what the period before left.
    pub carried: Milligrams,
    /// Beyond the limit, what a job may take that begins while there is room left.
    pub grace: Milligrams,
    /// Measured in this period.
    pub consumed: Milligrams,
    /// Set aside for jobs granted and not settled.
    pub reserved: Milligrams,
    /// Given back by jobs settled in this period, overruns not subtracted.
    pub refunded: Milligrams,
    /// Burned beyond reservations in this period.
    pub overrun: Milligrams,
}

impl Totals {
    /// What can still be granted; never below zero.
    pub fn remaining(&self) -> Milligrams {
        (self.limit - self.consumed - self.reserved).or_zero()
    }

    /// The largest job that may be granted now: what remains, and the grace where anything
    /// does.
    pub fn room(&self) -> Milligrams {
        match self.remaining() {
            Milligrams(0) => Milligrams(0),
            remaining => remaining + self.grace,
        }
    }

    /// The largest job that may ever be granted in such a period.
    pub fn most(&self) -> Milligrams {
        self.limit + self.grace
    }

    /// True from so many percent of the limit on, what is set aside included.
    pub fn is_near(&self, percent: u8) -> bool {
        let used = i128::from((self.consumed + self.reserved).0) * 100;
        used >= i128::from(self.limit.0) * i128::from(percent)
    }
}

impl Policy {
    /// Adds a ledger up under these terms; `since` is when it was begun.
    pub fn totals(&self, book: &Book, since: Option<Timestamp>, now: Timestamp) -> Totals {
        let carried = self.carried(book, since, now);
        let limit = self.limit + carried;
        Totals {
            carried,
            grace: self.grace,
            ..totals(limit, &self.period, book, now)
        }
    }

    /// What the period before left of the limit, where that is carried over: once, and of a
    /// period that was measured as a whole.
    fn carried(&self, book: &Book, since: Option<Timestamp>, now: Timestamp) -> Milligrams {
        let Some((first, next)) = self.period.before(now).filter(|_| self.carry_over) else {
            return Milligrams(0);
        };
        if since.is_none_or(|since| since > self.period.begins(first)) {
            return Milligrams(0);
        }
        let mut known: HashSet<&str> = HashSet::new();
        let entries = book.entries.iter();
        let entries = entries.filter(|entry| known.insert(&entry.uid));
        let charges = entries.flat_map(|entry| &entry.charges);
        let charges = charges.map(|charge| (charge.day, charge.mass));
        let put_away = book.put_away.iter().map(|(day, sum)| (*day, sum.charged));
        let then = charges.chain(put_away);
        let then = then.filter(|(day, _)| first <= *day && *day < next);
        let consumed: Milligrams = then.map(|(_, mass)| mass).sum();
        (self.limit - consumed).or_zero()
    }
}

/// Adds a ledger up. What jobs gave back or overran is of the period in which they burned last.
pub fn totals(limit: Milligrams, period: &Period, book: &Book, now: Timestamp) -> Totals {
    let mut totals = Totals {
        limit,
        ..Totals::default()
    };
    let mut known: HashSet<&str> = HashSet::with_capacity(book.entries.len());
    for entry in book.entries.iter().filter(|entry| known.insert(&entry.uid)) {
        let here: Milligrams = entry
            .charges
            .iter()
            .filter(|c| period.counts(c.day, now))
            .map(|c| c.mass)
            .sum();
        totals.consumed += here;
        totals.reserved += entry.outstanding();
        if entry.last_day().is_some_and(|day| period.counts(day, now)) {
            totals.refunded += entry.refund().or_zero();
            totals.overrun += entry.overrun();
        }
    }
    let lines = book.put_away.iter();
    for (_, sum) in lines.filter(|(day, _)| period.counts(*day, now)) {
        totals.consumed += sum.charged;
        totals.refunded += sum.refunded;
        totals.overrun += sum.overrun;
    }
    for grant in book
        .granting
        .iter()
        .filter(|grant| known.insert(&grant.uid))
    {
        totals.reserved += grant.mass;
    }
    totals
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::tz::TimeZone;
    use proptest::prelude::*;

    fn now() -> Timestamp {
        "2026-11-23T12:00:00Z".parse().unwrap()
    }

    fn month() -> Period {
        Period::Month(TimeZone::UTC)
    }

    fn book(entries: &[Entry]) -> Book {
        Book {
            entries: entries.to_vec(),
            ..Book::default()
        }
    }

    fn added(limit: i64, entries: &[Entry], granting: &[Granting]) -> Totals {
        let book = Book {
            entries: entries.to_vec(),
            granting: granting.to_vec(),
            ..Book::default()
        };
        totals(Milligrams(limit), &month(), &book, now())
    }

    fn entry(uid: &str, reserved: i64, charged: i64, settled: bool) -> Entry {
        let charges = vec![Charge {
            day: "2026-11-20".parse().unwrap(),
            mass: Milligrams(charged),
        }];
        Entry {
            uid: uid.into(),
            reserved: Milligrams(reserved),
            charges,
            settled,
        }
    }

    #[test]
    fn a_running_job_draws_its_reservation_down_and_its_sum_stays() {
        for charged in [0, 30, 100] {
            let sum = added(1000, &[entry("a", 100, charged, false)], &[]);
            assert_eq!(sum.remaining(), Milligrams(900));
        }
    }

    #[test]
    fn settling_gives_the_rest_back() {
        let sum = added(1000, &[entry("a", 100, 60, true)], &[]);
        assert_eq!(
            (sum.remaining(), sum.refunded),
            (Milligrams(940), Milligrams(40))
        );
    }

    #[test]
    fn a_grant_in_flight_counts_until_its_reservation_does() {
        let granting = [Granting {
            uid: "a".into(),
            mass: Milligrams(100),
        }];
        let before = added(1000, &[], &granting);
        let after = added(1000, &[entry("a", 100, 0, false)], &granting);
        assert_eq!(before.remaining(), after.remaining());
    }

    #[test]
    fn an_overrun_is_consumed_and_nothing_goes_below_zero() {
        let sum = added(100, &[entry("a", 50, 130, false)], &[]);
        assert_eq!(
            (sum.consumed, sum.reserved, sum.remaining()),
            (Milligrams(130), Milligrams(0), Milligrams(0))
        );
        assert_eq!(sum.overrun, Milligrams(80));
    }

    #[test]
    fn another_periods_charge_does_not_count_but_its_open_reservation_does() {
        let mut old = entry("a", 100, 40, false);
        old.charges[0].day = "2026-10-31".parse().unwrap();
        let sum = added(1000, &[old], &[]);
        assert_eq!(
            (sum.consumed, sum.reserved),
            (Milligrams(0), Milligrams(60))
        );
    }

    #[test]
    fn grace_lets_one_more_job_begin_and_none_once_the_limit_is_reached() {
        let policy = Policy {
            grace: Milligrams(50),
            ..Policy::monthly(Milligrams(100))
        };
        let with = |reserved: i64| {
            let entries = [entry("a", reserved, 0, false)];
            policy.totals(&book(&entries), None, now())
        };
        assert_eq!(
            (with(90).remaining(), with(90).room()),
            (Milligrams(10), Milligrams(60))
        );
        assert_eq!(
            (with(100).room(), with(140).room()),
            (Milligrams(0), Milligrams(0))
        );
        assert_eq!(with(0).most(), Milligrams(150));
        assert!(!with(89).is_near(90) && with(90).is_near(90));
    }

    #[test]
    fn what_a_whole_period_left_is_carried_over_once_and_only_where_asked() {
        let on = |day: &str, mass: i64| Charge {
            day: day.parse().unwrap(),
            mass: Milligrams(mass),
        };
        let old = Entry {
            uid: "a".into(),
            reserved: Milligrams(0),
            charges: vec![
                on("2026-09-30", 70),
                on("2026-10-02", 30),
                on("2026-11-01", 5),
            ],
            settled: true,
        };
        let carrying = |carry_over, since: &str| {
            let policy = Policy {
                carry_over,
                ..Policy::monthly(Milligrams(100))
            };
            let entries = [old.clone(), old.clone()];
            policy.totals(&book(&entries), since.parse().ok(), now())
        };
        let sum = carrying(true, "2026-09-01T00:00:00Z");
        assert_eq!((sum.carried, sum.limit), (Milligrams(70), Milligrams(170)));
        assert_eq!(
            (sum.consumed, sum.remaining()),
            (Milligrams(5), Milligrams(165))
        );
        assert_eq!(
            carrying(false, "2026-09-01T00:00:00Z").limit,
            Milligrams(100)
        );
        let half = carrying(true, "2026-10-15T00:00:00Z");
        assert_eq!(half.carried, Milligrams(0), "half a month was not measured");
    }

    proptest! {
        #[test]
        fn order_and_repetition_change_nothing_and_parts_are_conserved(
            lines in proptest::collection::vec((0_i64..500, 0_i64..800, any::<bool>()), 0..30),
        ) {
            let mut entries: Vec<Entry> = lines
                .iter()
                .enumerate()
                .map(|(i, (reserved, charged, settled))| entry(&i.to_string(), *reserved, *charged, *settled))
                .collect();
            let once = added(100_000, &entries, &[]);
            let mut doubled = entries.clone();
            doubled.append(&mut entries.clone());
            prop_assert_eq!(once, added(100_000, &doubled, &[]));
            entries.reverse();
            prop_assert_eq!(once, added(100_000, &entries, &[]));
            for line in &entries {
                let conserved = line.outstanding() + line.charged() + line.refund();
                prop_assert!(conserved >= line.reserved);
                if line.settled {
                    prop_assert_eq!(line.refund() + line.charged(), line.reserved);
                }
            }
        }
    }
}
