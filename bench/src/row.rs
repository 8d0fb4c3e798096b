//! What a row of the report is, and the comparisons that it comes to.

use crate::Result;
use crate::data::Bench;
use crate::measure::{Figures, median};

/// A figure this close to its target is not told from it.
pub const NOISE: f64 = 0.02;

type Run = dyn Fn(&Bench) -> Result<Vec<Line>>;

pub struct Row {
    pub name: String,
    pub run: Box<Run>,
}

pub fn row(name: impl Into<String>, run: impl Fn(&Bench) -> Result<Vec<Line>> + 'static) -> Row {
    Row { name: name.into(), run: Box::new(run) }
}

#[derive(Clone, Copy)]
pub enum Unit {
    Seconds,
    Bytes,
    /// Such as bytes written per byte of text.
    Times,
    /// Of one core.
    Share,
}

/// Less is better in every figure and every ratio.
#[derive(Clone, Copy)]
pub enum Target {
    /// The product takes at most this much of what the other side takes.
    Ratio(f64),
    /// The product is at least so many times as fast: a ratio of at most the inverse.
    SpeedUp(f64),
    /// The product's own figure.
    AtMost(f64),
}

pub fn ratio(ratio: f64) -> Option<Target> {
    Some(Target::Ratio(ratio))
}

pub fn speed_up(times: f64) -> Option<Target> {
    Some(Target::SpeedUp(times))
}

pub fn at_most(value: f64) -> Option<Target> {
    Some(Target::AtMost(value))
}

/// What one side does, and a figure a pair.
pub struct Side {
    pub name: String,
    pub figures: Vec<f64>,
}

impl Side {
    pub fn new(name: impl Into<String>, figures: &[f64]) -> Self {
        Self { name: name.into(), figures: figures.to_vec() }
    }

    pub fn median(&self) -> f64 {
        median(&self.figures)
    }
}

pub struct Line {
    pub product: Side,
    pub against: Option<Side>,
    pub unit: Unit,
    pub target: Option<Target>,
}

impl Line {
    /// A figure that stands for itself.
    pub fn alone(product: Side, unit: Unit, target: Option<Target>) -> Self {
        Self { product, against: None, unit, target }
    }

    pub fn ratios(&self) -> Vec<f64> {
        let against = self.against.iter().flat_map(|side| &side.figures);
        self.product
            .figures
            .iter()
            .zip(against)
            .map(|(product, against)| product / against)
            .collect()
    }

    /// "ok", "missed", or nothing where there is no target.
    pub fn verdict(&self) -> &'static str {
        let (figure, limit) = match self.target {
            None => return "",
            Some(Target::Ratio(limit)) => (median(&self.ratios()), limit),
            Some(Target::SpeedUp(times)) => (median(&self.ratios()), 1.0 / times),
            Some(Target::AtMost(limit)) => (self.product.median(), limit),
        };
        if figure <= limit * (1.0 + NOISE) { "ok" } else { "missed" }
    }
}

/// Comparisons of one arm with another, both by their number.
pub fn lines(
    arms: &[&str],
    figures: &Figures,
    comparisons: &[(usize, usize, Option<Target>)],
) -> Vec<Line> {
    let side = |arm: usize| Side::new(arms[arm], &figures[arm]);
    comparisons
        .iter()
        .map(|&(product, against, target)| Line {
            product: side(product),
            against: Some(side(against)),
            unit: Unit::Seconds,
            target,
        })
        .collect()
}
