//! Which key a request is about: uniform, zipfian or latest, as YCSB draws them.
//!
//! After `ScrambledZipfianGenerator`, `ZipfianGenerator` and `SkewedLatestGenerator` of YCSB
//! (`site.ycsb.generator`), whose zipfian numbers come from Gray et al., "Quickly Generating
//! Billion-Record Synthetic Databases", SIGMOD 1994. Ranks are drawn over [`SCRAMBLED_ITEMS`]
//! whatever the number of keys is, and hashed onto the keys, so that popular keys lie anywhere
//! among them. The random number comes from outside.
//!
//! One difference: YCSB adds up the normalising sum term by term, which takes minutes for its own
//! number of items, and so carries the sum as a constant. Here the tail of the sum is an integral.

use rand::RngExt;
use rand::rngs::SmallRng;

/// The exponent of the distribution, YCSB's `ZIPFIAN_CONSTANT`.
const THETA: f64 = 0.99;
/// The ranks that are scrambled onto the keys, YCSB's `ITEM_COUNT`.
const SCRAMBLED_ITEMS: u64 = 10_000_000_000;
/// Terms of the normalising sum that are added one by one; the error of the integral that stands
/// for the others is below 1e-9.
const ZETA_TERMS: u64 = 10_000;

/// The distributions from which a load draws its keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Distribution {
    /// Every key as often as any other.
    Uniform,
    /// Some keys much more often than others, scattered over all keys.
    Zipfian,
    /// The keys inserted last most often, by the same law.
    Latest,
}

impl Distribution {
    /// All that a bench can be asked for.
    pub const ALL: [Distribution; 3] =
        [Distribution::Uniform, Distribution::Zipfian, Distribution::Latest];

    /// The name by which it is chosen and reported.
    pub fn name(self) -> &'static str {
        match self {
            Distribution::Uniform => "uniform",
            Distribution::Zipfian => "zipfian",
            Distribution::Latest => "latest",
        }
    }
}

/// Draws the numbers of keys, from 0.
pub(super) struct KeyChooser {
    distribution: Distribution,
    zipfian: ZipfianRanks,
}

impl KeyChooser {
    /// A chooser for `keys` keys, to which more may be added.
    pub(super) fn new(distribution: Distribution, keys: u64) -> KeyChooser {
        let ranks = match distribution {
            Distribution::Zipfian => SCRAMBLED_ITEMS,
            Distribution::Uniform | Distribution::Latest => keys.max(1),
        };
        KeyChooser { distribution, zipfian: ZipfianRanks::new(ranks) }
    }

    /// The number of a key below `keys`, which is at least one.
    pub(super) fn draw(&mut self, keys: u64, random: &mut SmallRng) -> u64 {
        assert!(keys > 0, "there is a key to draw");
        match self.distribution {
            Distribution::Uniform => random.random_range(0..keys),
            Distribution::Zipfian => scramble(self.zipfian.rank(random.random())) % keys,
            Distribution::Latest => {
                self.zipfian.grow(keys);
                // More ranks than keys there are only if keys were taken away, which nobody does.
                keys - 1 - self.zipfian.rank(random.random()).min(keys - 1)
            }
        }
    }
}

/// Ranks from 0, of which rank r comes with a probability in proportion to 1 / (r + 1)^[`THETA`].
struct ZipfianRanks {
    items: u64,
    /// The sum of the proportions of all items.
    zeta: f64,
    eta: f64,
}

impl ZipfianRanks {
    fn new(items: u64) -> ZipfianRanks {
        let zeta = zeta(items);
        ZipfianRanks { items, zeta, eta: eta(items, zeta) }
    }

    /// Adds ranks until there are `items`.
    fn grow(&mut self, items: u64) {
        if items > self.items {
            for added in self.items + 1..=items {
                self.zeta += proportion(added);
            }
            self.items = items;
            self.eta = eta(items, self.zeta);
        }
    }

    /// The rank for `uniform`, a number from 0 up to and without 1.
    fn rank(&self, uniform: f64) -> u64 {
        let place = uniform * self.zeta;
        if place < 1.0 {
            return 0;
        }
        if place < 1.0 + proportion(2) {
            return 1;
        }
        let share = (self.eta * uniform - self.eta + 1.0).powf(1.0 / (1.0 - THETA));
        ((self.items as f64 * share) as u64).min(self.items - 1)
    }
}

fn proportion(nth: u64) -> f64 {
    (nth as f64).powf(-THETA)
}

/// The sum of the proportions of the first `items`.
fn zeta(items: u64) -> f64 {
    let added = items.min(ZETA_TERMS);
    let sum: f64 = (1..=added).map(proportion).sum();
    if items == added {
        return sum;
    }
    let power = |number: u64| (number as f64).powf(1.0 - THETA);
    let integral = (power(items) - power(added)) / (1.0 - THETA);
    sum + integral + (proportion(items) - proportion(added)) / 2.0
}

/// Gray's constant of that name. Of two items or fewer no rank depends on it.
fn eta(items: u64, zeta_of_items: f64) -> f64 {
    let zeta_of_two = 1.0 + proportion(2);
    if items <= 2 {
        return 0.0;
    }
    (1.0 - (2.0 / items as f64).powf(1.0 - THETA)) / (1.0 - zeta_of_two / zeta_of_items)
}

/// YCSB's `fnvhash64`: FNV-1a over the eight bytes of a number, the lowest first, without its sign.
fn scramble(number: u64) -> u64 {
    let hash = number.to_le_bytes().iter().fold(0xCBF2_9CE4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01B3)
    });
    (hash as i64).unsigned_abs()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use rand::SeedableRng;

    use super::*;

    const DRAWS: u64 = 400_000;

    /// How often each key came, the most frequent first.
    fn frequencies(distribution: Distribution, keys: u64) -> Vec<(u64, f64)> {
        let mut random = SmallRng::seed_from_u64(7);
        let mut chooser = KeyChooser::new(distribution, keys);
        let mut counts = BTreeMap::new();
        for _ in 0..DRAWS {
            *counts.entry(chooser.draw(keys, &mut random)).or_insert(0_u64) += 1;
        }
        let mut shares: Vec<(u64, f64)> =
            counts.into_iter().map(|(key, count)| (key, count as f64 / DRAWS as f64)).collect();
        shares.sort_by(|one, other| other.1.total_cmp(&one.1));
        shares
    }

    #[track_caller]
    fn is_near(found: f64, wanted: f64) {
        // Four standard deviations of a share of so many draws.
        let room = 4.0 * (wanted * (1.0 - wanted) / DRAWS as f64).sqrt();
        assert!((found - wanted).abs() <= room, "{found} is not {wanted} ± {room}");
    }

    #[test]
    fn the_sum_is_the_one_that_ycsb_carries() {
        assert!((zeta(SCRAMBLED_ITEMS) - 26.469_028_201_783_02).abs() < 1e-6);
        let one_by_one: f64 = (1..=50_000).map(proportion).sum();
        assert!((zeta(50_000) - one_by_one).abs() < 1e-9);
    }

    #[test]
    fn numbers_are_hashed_as_ycsb_hashes_them() {
        let hashed = [0, 1, 2, 9_999_999_999].map(scramble);
        let wanted = [
            6_284_781_860_667_377_211,
            8_517_097_267_634_966_620,
            1_820_151_046_732_198_393,
            3_605_131_173_811_637_474,
        ];
        assert_eq!(hashed, wanted);
    }

    #[test]
    fn ranks_come_as_often_as_the_law_says() {
        let mut random = SmallRng::seed_from_u64(3);
        let ranks = ZipfianRanks::new(1_000);
        let mut counts = vec![0_u64; 1_000];
        for _ in 0..DRAWS {
            counts[ranks.rank(random.random()) as usize] += 1;
        }
        let share = |count: u64| count as f64 / DRAWS as f64;
        is_near(share(counts[0]), 1.0 / ranks.zeta);
        is_near(share(counts[1]), proportion(2) / ranks.zeta);
        // Beyond the first two Gray's method is an approximation: of a thousand ranks it gives the
        // first ten 4 % more than their part.
        for (upto, room) in [(10, 0.05), (100, 0.02), (500, 0.01)] {
            let found = share(counts[..upto].iter().sum());
            let wanted = zeta(upto as u64) / ranks.zeta;
            assert!((found / wanted - 1.0).abs() < room, "of {upto}: {found}, not {wanted}");
        }
        assert!(counts[999] > 0, "the last rank comes, too");
    }

    #[test]
    fn ranks_that_grew_are_those_of_a_larger_set() {
        let mut grown = ZipfianRanks::new(1);
        grown.grow(3);
        grown.grow(20_000);
        let made = ZipfianRanks::new(20_000);
        for step in 0..1_000 {
            let uniform = f64::from(step) / 1_000.0;
            assert_eq!(grown.rank(uniform), made.rank(uniform), "{uniform}");
        }
    }

    #[test]
    fn popular_keys_are_scattered_and_popular_as_ycsb_has_them() {
        let keys = 100_000;
        let shares = frequencies(Distribution::Zipfian, keys);
        let all = zeta(SCRAMBLED_ITEMS);
        // The most popular key is that of rank 0, and whatever else is hashed onto it.
        assert_eq!(shares[0].0, scramble(0) % keys);
        assert_eq!(shares[1].0, scramble(1) % keys);
        is_near(shares[0].1, 1.0 / all);
        is_near(shares[1].1, proportion(2) / all);
        // The tail of the ten thousand million ranks reaches all keys: that is YCSB's shape.
        assert!(shares.len() as u64 > keys / 2, "{} keys came", shares.len());
    }

    #[test]
    fn the_newest_keys_are_the_popular_ones() {
        let keys = 1_000;
        let shares = frequencies(Distribution::Latest, keys);
        assert_eq!((shares[0].0, shares[1].0), (keys - 1, keys - 2));
        is_near(shares[0].1, 1.0 / zeta(keys));
    }

    #[test]
    fn every_key_is_drawn_uniformly() {
        let shares = frequencies(Distribution::Uniform, 100);
        assert_eq!(shares.len(), 100);
        is_near(shares[50].1, 0.01);
    }

    #[test]
    fn one_key_is_enough_for_every_distribution() {
        let mut random = SmallRng::seed_from_u64(1);
        for distribution in Distribution::ALL {
            for keys in 1..=3 {
                let mut chooser = KeyChooser::new(distribution, keys);
                let drawn: Vec<u64> = (0..100).map(|_| chooser.draw(keys, &mut random)).collect();
                assert!(drawn.iter().all(|key| *key < keys), "{distribution:?} of {keys}");
            }
        }
    }
}
