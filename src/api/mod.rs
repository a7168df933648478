//! The custom resources, and their conversion into the pure types: one path for the
//! webhook, the controller and the command line.

#![allow(
    unreachable_pub,
    reason = "the derive re-declares what is re-exported here"
)]
#![allow(
    clippy::duplicated_attributes,
    reason = "a derive's attribute for each column"
)]

mod carbon_budget;
mod condition;
mod diffusion_model;
mod energy_law;
mod grid_zone;
mod reservation;
mod schema;
mod statement;

pub use carbon_budget::{
    BudgetPeriod, BudgetStatus, CarbonBudget, CarbonBudgetSpec, GrantInFlight, PeriodKind,
    PeriodStatus, QueuedJob,
};
pub use condition::{Condition, set_condition};
pub use diffusion_model::{DenoiserSpec, DiffusionModel, DiffusionModelSpec, DiffusionModelStatus};
pub use energy_law::{EnergyLaw, EnergyLawSpec, EnergyLawStatus, NamedValue, NamespaceStanding};
pub use grid_zone::{GridSource, GridZone, GridZoneSpec, GridZoneStatus, site_of};
pub use reservation::{
    BookedCharge, CarbonReservation, CarbonReservationSpec, IntensityUsed, JoinedBudget, LawUsed,
    Lesson, PodCharge, ReservationStatus, ReservedFor, RunCharge, WorkloadRef,
};
pub use schema::custom_resource_definitions;
pub use statement::{CarbonStatement, CarbonStatementSpec, StatementLine, StatementStatus};

/// An object that the schema let through but that makes no sense, in words for people.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct InvalidSpec {
    pub field: &'static str,
    pub problem: String,
}
