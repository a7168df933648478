//! The end of every chain of sources: yearly values that are always there.

use super::intensity::{Basis, Intensity, Kind, Pue, Signal};
use std::sync::LazyLock;

/// Where a grid zone is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// ISO 3166-1 alpha-3 code.
    Country(String),
    /// A zone of the balancing-authority table, such as `US-CAL-CISO`.
    GridZone(String),
    /// A cloud's region.
    Region { provider: String, region: String },
    /// Nothing known: the world's mean.
    World,
}

/// A place that is in no table.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} {value:?} is in no embedded table; {allowed}")]
pub struct EmbeddedError {
    what: &'static str,
    value: String,
    allowed: &'static str,
}

/// PUE where nobody said: mean of the Uptime Institute's survey of 2024.
pub const ASSUMED_PUE: f64 = 1.56;

/// Mean of the world's grids, g/kWh (Ember 2026).
const WORLD: f64 = 458.3;

/// One standard deviation of the hour about the year's mean, as a fraction: the middle of
/// 4–60 % seen over eleven grids.
const YEARLY_UNCERTAINTY: f64 = 0.3;

const COUNTRIES: &str = include_str!("data/country_intensity.csv");
const AUTHORITIES: &str = include_str!("data/us_balancing_authorities.csv");
const REGIONS: &str = include_str!("data/cloud_regions.csv");

struct Row {
    fields: Vec<String>,
}

impl Row {
    fn get(&self, column: usize) -> &str {
        self.fields.get(column).map_or("", String::as_str)
    }
}

fn rows(text: &'static str) -> Vec<Row> {
    csv::Reader::from_reader(text.as_bytes())
        .records()
        .filter_map(Result::ok)
        .map(|record| Row {
            fields: record.iter().map(str::to_owned).collect(),
        })
        .collect()
}

static COUNTRY_ROWS: LazyLock<Vec<Row>> = LazyLock::new(|| rows(COUNTRIES));
static AUTHORITY_ROWS: LazyLock<Vec<Row>> = LazyLock::new(|| rows(AUTHORITIES));
static REGION_ROWS: LazyLock<Vec<Row>> = LazyLock::new(|| rows(REGIONS));

/// The yearly intensity and the PUE of a place.
///
/// # Errors
/// Where the place is in no table.
pub fn embedded(place: &Place) -> Result<(Intensity, Pue), EmbeddedError> {
    let assumed = || Pue {
        value: ASSUMED_PUE,
        source: "assumed (survey mean 2024)".to_owned(),
    };
    match place {
        Place::World => Ok((record("World", WORLD, "Ember 2026".to_owned()), assumed())),
        Place::Country(code) => country(code).map(|i| (i, assumed())),
        Place::GridZone(zone) => authority(zone).map(|i| (i, assumed())).ok_or_else(|| EmbeddedError {
            what: "grid zone",
            value: zone.clone(),
            allowed: "known are eight US authorities such as US-CAL-CISO: name a country instead",
        }),
        Place::Region { provider, region } => in_region(provider, region, assumed),
    }
}

fn in_region(
    provider: &str,
    region: &str,
    assumed: impl Fn() -> Pue,
) -> Result<(Intensity, Pue), EmbeddedError> {
    let row = REGION_ROWS
        .iter()
        .find(|r| r.get(0).eq_ignore_ascii_case(provider) && r.get(1).eq_ignore_ascii_case(region))
        .ok_or_else(|| EmbeddedError {
            what: "cloud region",
            value: format!("{provider}/{region}"),
            allowed: "known are aws, gcp and azure regions such as aws/eu-central-1: name a country instead",
        })?;
    let intensity = authority(row.get(3)).map_or_else(|| country(row.get(2)), Ok)?;
    let pue = row.get(4).parse().map_or_else(
        |_| assumed(),
        |value| Pue {
            value,
            source: format!("{provider} {region}, published"),
        },
    );
    Ok((intensity, pue))
}

fn country(code: &str) -> Result<Intensity, EmbeddedError> {
    COUNTRY_ROWS
        .iter()
        .find(|row| row.get(0).eq_ignore_ascii_case(code))
        .and_then(|row| {
            let source = format!(
                "Ember and Energy Institute via Our World in Data {}",
                row.get(2)
            );
            row.get(3)
                .parse()
                .ok()
                .map(|grams| record(row.get(0), grams, source))
        })
        .ok_or_else(|| EmbeddedError {
            what: "country",
            value: code.to_owned(),
            allowed: "write an ISO 3166-1 alpha-3 code such as DEU",
        })
}

fn authority(zone: &str) -> Option<Intensity> {
    let row = AUTHORITY_ROWS
        .iter()
        .find(|row| row.get(0).eq_ignore_ascii_case(zone))?;
    let source = format!("EIA-930 {} with IPCC AR5 medians", row.get(1));
    row.get(2)
        .parse()
        .ok()
        .map(|grams| record(row.get(0), grams, source))
}

fn record(zone: &str, grams_per_kwh: f64, source: String) -> Intensity {
    Intensity {
        zone: zone.to_owned(),
        grams_per_kwh,
        signal: Signal::Average,
        basis: Basis::Lifecycle,
        kind: Kind::Static,
        source,
        relative_uncertainty: YEARLY_UNCERTAINTY,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_embedded_row_can_be_used() {
        assert!(COUNTRY_ROWS.len() > 200 && AUTHORITY_ROWS.len() == 8 && REGION_ROWS.len() == 132);
        for row in COUNTRY_ROWS.iter() {
            let (intensity, _) = embedded(&Place::Country(row.get(0).to_owned())).unwrap();
            intensity.check().unwrap();
        }
        for row in REGION_ROWS.iter() {
            let place = Place::Region {
                provider: row.get(0).to_owned(),
                region: row.get(1).to_owned(),
            };
            let (intensity, pue) = embedded(&place).unwrap_or_else(|e| unreachable!("{e}"));
            intensity.check().unwrap();
            assert!((1.0..2.0).contains(&pue.value));
        }
    }

    #[test]
    fn a_region_takes_its_authority_where_there_is_one_and_its_country_else() {
        let at = |provider: &str, region: &str| {
            embedded(&Place::Region {
                provider: provider.into(),
                region: region.into(),
            })
            .unwrap()
        };
        assert_eq!(at("aws", "us-east-1").0.zone, "US-MIDA-PJM");
        assert_eq!(at("aws", "eu-central-1").0.zone, "DEU");
        assert!(
            embedded(&Place::Country("DE".into()))
                .unwrap_err()
                .to_string()
                .contains("alpha-3")
        );
    }

    #[test]
    fn the_countries_agree_with_an_independent_table() {
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../shared/data/carbon/country_intensity.csv"
        );
        let Ok(text) = std::fs::read_to_string(path) else {
            #[expect(
                clippy::disallowed_methods,
                reason = "in CI an absent data set is a failure"
            )]
            let ci = std::env::var_os("CI").is_some();
            assert!(!ci, "the reference table must be there in CI");
            eprintln!("SKIPPED: no reference table, the countries are not checked");
            return;
        };
        let mut errors: Vec<f64> = csv::Reader::from_reader(text.as_bytes())
            .records()
            .filter_map(Result::ok)
            .filter_map(|row| {
                let theirs: f64 = row.get(4)?.parse().ok().filter(|grams| *grams > 0.0)?;
                let ours = country(row.get(1)?).ok()?;
                Some((ours.grams_per_kwh / theirs - 1.0).abs())
            })
            .collect();
        errors.sort_by(f64::total_cmp);
        assert!(errors.len() > 200, "{}", errors.len());
        // Two to three years lie between the tables; grids move, most of them little.
        assert!(
            errors[errors.len() / 2] < 0.08,
            "median {}",
            errors[errors.len() / 2]
        );
        assert!(
            errors[errors.len() * 9 / 10] < 0.4,
            "p90 {}",
            errors[errors.len() * 9 / 10]
        );
    }
}
