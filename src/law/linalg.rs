//! The little linear algebra that the laws need: symmetric positive definite systems of
//! a few dozen unknowns.

/// A dense symmetric matrix, row-major.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Symmetric {
    pub(super) n: usize,
    a: Vec<f64>,
}

impl Symmetric {
    pub(super) fn diagonal(values: &[f64]) -> Self {
        let n = values.len();
        let mut matrix = Self {
            n,
            a: vec![0.0; n * n],
        };
        for (i, value) in values.iter().enumerate() {
            matrix.set(i, i, *value);
        }
        matrix
    }

    pub(super) fn get(&self, i: usize, j: usize) -> f64 {
        self.a[i * self.n + j]
    }

    /// Sets (i, j) and (j, i).
    pub(super) fn set(&mut self, i: usize, j: usize, value: f64) {
        self.a[i * self.n + j] = value;
        self.a[j * self.n + i] = value;
    }

    /// Adds `weight · x·xᵀ`.
    pub(super) fn add_outer(&mut self, x: &[f64], weight: f64) {
        for i in 0..self.n {
            if x[i] != 0.0 {
                for j in 0..=i {
                    self.set(i, j, self.get(i, j) + weight * x[i] * x[j]);
                }
            }
        }
    }

    /// Matrix times vector.
    pub(super) fn times(&self, x: &[f64]) -> Vec<f64> {
        self.a
            .chunks(self.n.max(1))
            .map(|row| dot(row, x))
            .collect()
    }

    /// Adds a row and column that is zero but for its diagonal.
    pub(super) fn grow(&mut self, diagonal: f64) {
        let n = self.n + 1;
        let mut a = Vec::with_capacity(n * n);
        for row in self.a.chunks(self.n.max(1)) {
            a.extend_from_slice(row);
            a.push(0.0);
        }
        a.resize(n * n - 1, 0.0);
        a.push(diagonal);
        *self = Self { n, a };
    }

    /// Removes row and column k: marginalises a Gaussian over that unknown.
    pub(super) fn shrink(&mut self, k: usize) {
        let n = self.n.saturating_sub(1);
        let mut a = Vec::with_capacity(n * n);
        for (i, row) in self.a.chunks(self.n.max(1)).enumerate() {
            if i != k {
                a.extend_from_slice(&row[..k]);
                a.extend_from_slice(&row[k + 1..]);
            }
        }
        *self = Self { n, a };
    }

    /// Changes every element.
    pub(super) fn map(&mut self, change: impl Fn(f64) -> f64) {
        for value in &mut self.a {
            *value = change(*value);
        }
    }

    /// True where it may be a covariance: variances that are possible, and no correlation
    /// beyond one.
    pub(super) fn is_plausible(&self) -> bool {
        (0..self.n).all(|i| {
            let own = self.get(i, i);
            let within = |j: usize| {
                let limit = own * self.get(j, j);
                self.get(i, j).powi(2) <= limit * 1.0001 + 1e-12
            };
            (0.0..1e4).contains(&own) && (0..i).all(within)
        })
    }

    /// Lower triangle, row by row.
    pub(super) fn lower(&self) -> Vec<f64> {
        (0..self.n)
            .flat_map(|i| (0..=i).map(move |j| self.get(i, j)))
            .collect()
    }

    /// From a lower triangle; `None` where the length does not fit or a value is not finite.
    pub(super) fn from_lower(n: usize, lower: &[f64]) -> Option<Self> {
        if lower.len() != n * (n + 1) / 2 || lower.iter().any(|value| !value.is_finite()) {
            return None;
        }
        let mut matrix = Self::diagonal(&vec![0.0; n]);
        let mut values = lower.iter();
        for i in 0..n {
            for j in 0..=i {
                matrix.set(i, j, *values.next()?);
            }
        }
        Some(matrix)
    }

    /// Cholesky factor L (lower) with `L·Lᵀ = self`; `None` if not positive definite.
    fn cholesky(&self) -> Option<Vec<f64>> {
        let n = self.n;
        let mut l = vec![0.0; n * n];
        for i in 0..n {
            for j in 0..=i {
                let sum: f64 = (0..j).map(|k| l[i * n + k] * l[j * n + k]).sum();
                let rest = self.get(i, j) - sum;
                if i == j {
                    if rest.is_nan() || rest <= 0.0 {
                        return None;
                    }
                    l[i * n + i] = rest.sqrt();
                } else {
                    l[i * n + j] = rest / l[j * n + j];
                }
            }
        }
        Some(l)
    }

    /// Solves `self · x = b`; `None` if not positive definite.
    pub(super) fn solve(&self, b: &[f64]) -> Option<Vec<f64>> {
        let (n, l) = (self.n, self.cholesky()?);
        let mut x = b.to_vec();
        for i in 0..n {
            let sum: f64 = (0..i).map(|k| l[i * n + k] * x[k]).sum();
            x[i] = (x[i] - sum) / l[i * n + i];
        }
        for i in (0..n).rev() {
            let sum: f64 = (i + 1..n).map(|k| l[k * n + i] * x[k]).sum();
            x[i] = (x[i] - sum) / l[i * n + i];
        }
        Some(x)
    }

    /// The inverse; `None` if not positive definite.
    pub(super) fn inverse(&self) -> Option<Self> {
        let mut inverse = Self::diagonal(&vec![0.0; self.n]);
        for j in 0..self.n {
            let mut unit = vec![0.0; self.n];
            unit[j] = 1.0;
            for (i, value) in self.solve(&unit)?.into_iter().enumerate() {
                inverse.set(i, j, value);
            }
        }
        Some(inverse)
    }
}

pub(super) fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn solving_gives_back_what_was_multiplied() {
        let mut matrix = Symmetric::diagonal(&[4.0, 3.0, 2.0]);
        matrix.set(0, 1, 1.0);
        matrix.set(1, 2, -0.5);
        let x = [1.0, -2.0, 3.0];
        let solved = matrix.solve(&matrix.times(&x)).unwrap();
        assert!(solved.iter().zip(x).all(|(a, b)| (a - b).abs() < 1e-12));
        let unit = matrix.inverse().unwrap().times(&matrix.times(&x));
        assert!(unit.iter().zip(x).all(|(a, b)| (a - b).abs() < 1e-12));
    }

    #[test]
    fn a_matrix_that_is_not_positive_definite_is_refused() {
        assert_eq!(Symmetric::diagonal(&[1.0, -1.0]).solve(&[1.0, 1.0]), None);
    }

    #[test]
    fn a_lower_triangle_goes_there_and_back() {
        let mut matrix = Symmetric::diagonal(&[1.0, 2.0]);
        matrix.set(0, 1, 0.5);
        assert_eq!(Symmetric::from_lower(2, &matrix.lower()), Some(matrix));
        assert_eq!(Symmetric::from_lower(2, &[1.0]), None);
        assert_eq!(Symmetric::from_lower(1, &[f64::NAN]), None);
    }
}
