//! The stretch of time a limit is for: a pure function of time zone and now.

use jiff::civil::{Date, Weekday};
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan};

/// Calendar periods in a time zone, or a window of days that ends today.
#[derive(Debug, Clone, PartialEq)]
pub enum Period {
    Day(TimeZone),
    Week(TimeZone),
    Month(TimeZone),
    /// Months, quarters or years that begin where a fiscal year does.
    Fiscal(TimeZone, Fiscal),
    /// The last n days, today included.
    Rolling(TimeZone, u16),
}

/// A stretch of whole months, counted from a day of the year.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fiscal {
    /// 1, 3 or 12.
    pub months: i16,
    /// Month that the fiscal year begins in, 1 to 12.
    pub first_month: i8,
    /// Day of the month that each stretch begins on, 1 to 28.
    pub first_day: i8,
}

impl Fiscal {
    /// The first day of the stretch that a day is in, and of the next.
    fn days(self, today: Date) -> (Date, Date) {
        let months = i32::from(self.months.max(1));
        let begun = i32::from(today.day() >= self.first_day);
        let month = i32::from(today.year()) * 12 + i32::from(today.month()) - 2 + begun;
        let into = (month - i32::from(self.first_month) + 1).rem_euclid(months);
        let first = month - into;
        (self.day(first), self.day(first + months))
    }

    /// The day that a stretch begins on, by months since the year 0.
    fn day(self, month: i32) -> Date {
        let year = i16::try_from(month.div_euclid(12)).unwrap_or(i16::MAX);
        let of_year = i8::try_from(month.rem_euclid(12) + 1).unwrap_or(1);
        Date::new(year, of_year, self.first_day).unwrap_or(Date::MAX)
    }
}

/// The period that a moment is in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    /// Names the period: `2026-11`, `2026-W48`, `2026-11-23`.
    pub id: String,
    pub start: Timestamp,
    /// When what is consumed now is forgotten: the next period's start; for a rolling
    /// window the next midnight, when its oldest day falls out.
    pub end: Timestamp,
}

impl Period {
    /// The period at `now`; across a clock change it is 23 or 25 hours a day, as the
    /// calendar says.
    pub fn at(&self, now: Timestamp) -> Span {
        let today = self.day(now);
        let (first, next) = self.days(today);
        let id = match self {
            Self::Day(_) => today.to_string(),
            Self::Week(_) => {
                let iso = today.iso_week_date();
                format!("{}-W{:02}", iso.year(), iso.week())
            }
            Self::Month(_) => today.strftime("%Y-%m").to_string(),
            // An interval of ISO 8601.
            Self::Fiscal(_, fiscal) => format!("{first}/P{}M", fiscal.months),
            Self::Rolling(_, days) => format!("{days}d-to-{today}"),
        };
        Span {
            id,
            start: self.midnight(first),
            end: self.midnight(next),
        }
    }

    /// When the period at `now` ends.
    pub fn end(&self, now: Timestamp) -> Timestamp {
        self.midnight(self.days(self.day(now)).1)
    }

    /// The first day of the period that a day is in, and of the next.
    fn days(&self, today: Date) -> (Date, Date) {
        match self {
            Self::Day(_) => (today, shift(today, 1)),
            Self::Week(_) => {
                let since = i64::from(today.weekday().since(Weekday::Monday));
                let monday = shift(today, -since);
                (monday, shift(monday, 7))
            }
            Self::Month(_) => (today.first_of_month(), shift(today.last_of_month(), 1)),
            Self::Fiscal(_, fiscal) => fiscal.days(today),
            Self::Rolling(_, days) => {
                let first = shift(today, 1 - i64::from(*days));
                (first, shift(today, 1))
            }
        }
    }

    /// The day in the budget's time zone, which a charge at `now` is booked to. Every period
    /// begins and ends at a midnight, so a change of period loses nothing.
    pub fn day(&self, now: Timestamp) -> Date {
        now.to_zoned(self.zone().clone()).date()
    }

    /// True where a charge booked to `day` counts at `now`.
    pub fn counts(&self, day: Date, now: Timestamp) -> bool {
        let (first, next) = self.days(self.day(now));
        first <= day && day < next
    }

    /// The days of the calendar period before the one at `now`, the first and the one after
    /// the last; a rolling window has none before it.
    pub fn before(&self, now: Timestamp) -> Option<(Date, Date)> {
        if matches!(self, Self::Rolling(..)) {
            return None;
        }
        let (first, _) = self.days(self.day(now));
        Some(self.days(shift(first, -1)))
    }

    /// When a day begins.
    pub fn begins(&self, day: Date) -> Timestamp {
        self.midnight(day)
    }

    fn zone(&self) -> &TimeZone {
        match self {
            Self::Day(zone)
            | Self::Week(zone)
            | Self::Month(zone)
            | Self::Fiscal(zone, _)
            | Self::Rolling(zone, _) => zone,
        }
    }

    fn midnight(&self, day: Date) -> Timestamp {
        self.zone()
            .to_ambiguous_zoned(day.at(0, 0, 0, 0))
            .compatible()
            .map_or(Timestamp::MAX, |zoned| zoned.timestamp())
    }
}

fn shift(day: Date, days: i64) -> Date {
    day.saturating_add(days.days())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn berlin() -> TimeZone {
        TimeZone::get("Europe/Berlin").unwrap()
    }

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn a_month_ends_at_local_midnight() {
        let span = Period::Month(berlin()).at(at("2026-11-30T22:59:59Z"));
        assert_eq!(
            (span.id.as_str(), span.end),
            ("2026-11", at("2026-11-30T23:00:00Z"))
        );
        assert_eq!(
            Period::Month(berlin()).at(at("2026-11-30T23:00:00Z")).id,
            "2026-12"
        );
    }

    #[test]
    fn a_week_belongs_to_its_iso_year() {
        let span = Period::Week(TimeZone::UTC).at(at("2027-01-02T12:00:00Z"));
        assert_eq!(span.id, "2026-W53");
        assert_eq!(span.start, at("2026-12-28T00:00:00Z"));
    }

    #[test]
    fn the_days_of_a_clock_change_have_23_and_25_hours() {
        let hours = |text: &str| {
            let span = Period::Day(berlin()).at(at(text));
            (span.end.as_second() - span.start.as_second()) / 3600
        };
        assert_eq!(hours("2026-03-29T12:00:00Z"), 23);
        assert_eq!(hours("2026-10-25T12:00:00Z"), 25);
    }

    fn fiscal(months: i16, first_month: i8, first_day: i8) -> Period {
        let fiscal = Fiscal {
            months,
            first_month,
            first_day,
        };
        Period::Fiscal(berlin(), fiscal)
    }

    #[test]
    fn fiscal_years_quarters_and_months_begin_where_they_are_said_to() {
        let day = |period: &Period, text: &str| {
            let span = period.at(at(text));
            (
                span.id,
                period.day(span.start).to_string(),
                period.day(span.end).to_string(),
            )
        };
        let of = |id: &str, first: &str, next: &str| (id.into(), first.into(), next.into());
        let year = fiscal(12, 4, 6);
        assert_eq!(
            day(&year, "2026-04-05T12:00:00Z"),
            of("2025-04-06/P12M", "2025-04-06", "2026-04-06")
        );
        assert_eq!(
            day(&year, "2026-04-05T22:30:00Z"),
            of("2026-04-06/P12M", "2026-04-06", "2027-04-06")
        );
        let quarter = fiscal(3, 2, 1);
        assert_eq!(
            day(&quarter, "2026-01-15T12:00:00Z"),
            of("2025-11-01/P3M", "2025-11-01", "2026-02-01")
        );
        let month = fiscal(1, 1, 15);
        assert_eq!(
            day(&month, "2026-01-14T12:00:00Z"),
            of("2025-12-15/P1M", "2025-12-15", "2026-01-15")
        );
        assert_eq!(
            month.before(at("2026-01-20T12:00:00Z")),
            Some(("2025-12-15".parse().unwrap(), "2026-01-15".parse().unwrap()))
        );
    }

    #[test]
    fn a_rolling_window_forgets_its_oldest_day() {
        let period = Period::Rolling(TimeZone::UTC, 7);
        let day = period.day(at("2026-11-01T10:00:00Z"));
        assert!(period.counts(day, at("2026-11-07T23:59:59Z")));
        assert!(!period.counts(day, at("2026-11-08T00:00:00Z")));
    }

    #[test]
    fn what_was_booked_counts_on_when_the_kind_of_period_changes() {
        let now = at("2026-11-23T12:00:00Z");
        let day = Period::Month(berlin()).day(now);
        for period in [
            Period::Day(berlin()),
            Period::Week(berlin()),
            Period::Rolling(berlin(), 7),
        ] {
            assert!(period.counts(day, now), "{period:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn every_moment_lies_in_its_period_and_names_it_alike(second in 0_i64..4_000_000_000) {
            let now = Timestamp::from_second(second).unwrap();
            for period in [
                Period::Day(berlin()), Period::Week(berlin()), Period::Month(berlin()),
                fiscal(1, 1, 28), fiscal(3, 2, 1), fiscal(12, 4, 6),
            ] {
                let span = period.at(now);
                proptest::prop_assert!(span.start <= now && now < span.end);
                proptest::prop_assert_eq!(&period.at(span.start).id, &span.id);
                proptest::prop_assert_ne!(&period.at(span.end).id, &span.id);
                proptest::prop_assert!(period.counts(period.day(now), now));
                proptest::prop_assert!(!period.counts(period.day(now), span.end));
            }
        }
    }
}
