//! How many tokens a picture becomes, from its height and width alone, exactly as each family's processor counts.
//!
//! Sizes are those of the upright picture. Rounding is Python's: half to even.
use crate::error::RowError;
use serde::Deserialize;

/// A family's rule with its parameters.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Rule {
    /// Every picture is brought to one size.
    Fixed {
        /// Features of a picture.
        features: usize,
        /// Patches that the vision tower sees.
        patches: usize,
    },
    /// Sides are rounded to whole cells, and the area is brought between two bounds (Qwen-VL, GLM-V).
    Smart {
        /// Pixels of a patch's side.
        patch: usize,
        /// Patches of a cell's side; a cell is one feature.
        merge: usize,
        /// Least pixels.
        min_pixels: usize,
        /// Most pixels.
        max_pixels: usize,
        /// Frames that a still picture counts for in the bounds.
        #[serde(default = "one")]
        frames: usize,
        /// Enlarge pictures with a side under a cell, instead of rounding up.
        #[serde(default)]
        enlarge: bool,
    },
    /// The grid of square tiles whose proportions fit best, and the whole picture (`InternVL`).
    Canvas {
        /// Pixels of a tile's side.
        tile: usize,
        /// Least tiles.
        min_tiles: usize,
        /// Most tiles.
        max_tiles: usize,
        /// Features of a tile.
        features: usize,
        /// Patches of a tile.
        patches: usize,
    },
    /// The listed size that keeps most of the picture, without its padding, and the whole picture (LLaVA-NeXT).
    Pinpoints {
        /// Pixels of a tile's side.
        side: usize,
        /// Features of a tile's side.
        cells: usize,
        /// Sizes to choose from, height and width.
        sizes: Vec<(usize, usize)>,
        /// More features than so many tiles' are thinned out.
        #[serde(default)]
        most_tiles: Option<usize>,
        /// Several pictures in a row are not cut into tiles.
        #[serde(default)]
        alone_only: bool,
        /// Features of a picture beside its cells; may be less than 0.
        #[serde(default)]
        extra: isize,
    },
    /// Tiles of the picture enlarged to a longest edge, and the whole picture (Idefics3, `SmolVLM`).
    Tiles {
        /// Pixels of a tile's side.
        tile: usize,
        /// The longest edge before tiles are cut.
        longest_edge: usize,
        /// Features of a tile.
        features: usize,
        /// Patches of a tile.
        patches: usize,
        /// Whether tiles are cut at all.
        split: bool,
    },
    /// Cells that cover the picture, shrunk to a longest edge where it is longer (Pixtral).
    Cover {
        /// Pixels of a cell's side.
        cell: usize,
        /// Patches of a cell's side; a cell is one feature.
        merge: usize,
        /// The longest edge.
        longest_edge: usize,
    },
    /// Tiles of the canvas that shrinks a picture least, or enlarges it least, and the whole picture (Llama 4).
    Fit {
        /// Pixels of a tile's side.
        tile: usize,
        /// Most tiles.
        max_tiles: usize,
        /// Features of a tile.
        features: usize,
        /// Patches of a tile.
        patches: usize,
        /// Enlarge pictures as far as a canvas allows.
        largest: bool,
    },
    /// A spectrum of windows, halved by a convolution and by pooling (Whisper's encoder with Qwen2-Audio's pooling).
    Spectrum {
        /// Samples a second that the tower hears.
        rate: u32,
        /// Samples from one window to the next.
        hop: u32,
        /// The longest sound, in samples.
        most_samples: u32,
    },
}

fn one() -> usize {
    1
}

/// What becomes of a picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FeaturePlan {
    /// How many feature tokens it becomes.
    pub(crate) features: usize,
    /// Patches, or tiles, in time, height and width.
    pub(crate) grid: [usize; 3],
    /// Patches that the vision tower sees.
    pub(crate) patches: usize,
    /// Tokens of one tile, where each tile has marks of its own.
    pub(crate) tile_features: usize,
}

/// What a rule is asked about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Subject {
    /// Height and width of a picture, upright.
    Picture(usize, usize),
    /// Pictures of one size, height and width: how many.
    Frames(usize, usize, usize),
    /// Samples, and how many of them a second has.
    Sound(u32, u32),
}

impl Rule {
    /// The plan of an item among `number` of its row.
    ///
    /// # Errors
    /// [`RowError`] for a size or length that the family's processor refuses, or would cut without a word.
    pub(crate) fn plan_of(&self, subject: Subject, number: usize) -> Result<FeaturePlan, RowError> {
        match (self, subject) {
            (&Self::Spectrum { rate, hop, most_samples }, Subject::Sound(samples, own)) => {
                spectrum(samples, own, [rate, hop, most_samples])
            }
            (
                &Self::Smart { patch, merge, min_pixels, max_pixels, frames, .. },
                Subject::Frames(count, height, width),
            ) => {
                let (h, w) = smart_size(height, width, patch * merge, [min_pixels, max_pixels], 1, false)?;
                let grid = [count.div_ceil(frames), h / patch, w / patch];
                let patches = grid.iter().product::<usize>();
                Ok(FeaturePlan { features: patches / (merge * merge), grid, patches, tile_features: 0 })
            }
            (_, Subject::Picture(height, width) | Subject::Frames(_, height, width)) => {
                self.plan(height, width, number)
            }
            (_, Subject::Sound(..)) => {
                Err(RowError::new("media", "the family's rule counts no sounds; report this".to_owned()))
            }
        }
    }

    /// The plan of a picture among `number` of its row.
    ///
    /// # Errors
    /// [`RowError`] for a size that the family's processor refuses.
    pub(crate) fn plan(&self, height: usize, width: usize, number: usize) -> Result<FeaturePlan, RowError> {
        Ok(match *self {
            Self::Fixed { features, patches } => {
                FeaturePlan { features, grid: [1, 1, 1], patches, tile_features: features }
            }
            Self::Smart { patch, merge, min_pixels, max_pixels, frames, enlarge } => {
                let (h, w) = smart_size(height, width, patch * merge, [min_pixels, max_pixels], frames, enlarge)?;
                let grid = [1, h / patch, w / patch];
                let patches = grid[1] * grid[2];
                let features = patches / (merge * merge);
                FeaturePlan { features, grid, patches, tile_features: features }
            }
            Self::Canvas { tile, min_tiles, max_tiles, features, patches } => {
                let (columns, rows) = canvas(height, width, tile, min_tiles, max_tiles);
                let tiles = if columns * rows > 1 { columns * rows + 1 } else { 1 };
                let grid = [tiles, rows, columns];
                FeaturePlan { features: tiles * features, grid, patches: tiles * patches, tile_features: features }
            }
            Self::Pinpoints { side, cells, ref sizes, most_tiles, alone_only, extra } => {
                if alone_only && number > 1 {
                    let features = (cells * cells + 1).saturating_add_signed(extra);
                    return Ok(FeaturePlan {
                        features,
                        grid: [1, 1, 1],
                        patches: cells * cells,
                        tile_features: features,
                    });
                }
                let (h, w) = best_size(height, width, sizes);
                let features = unpadded(height, width, (h / side, w / side), cells, most_tiles);
                let features = features.saturating_add_signed(extra);
                let tiles = (h / side) * (w / side) + 1;
                let patches = tiles * cells * cells;
                FeaturePlan { features, grid: [tiles, h / side, w / side], patches, tile_features: cells * cells }
            }
            Self::Cover { cell, merge, longest_edge } => {
                let (rows, columns) = cover(height, width, cell, longest_edge);
                let features = rows * columns;
                if features == 0 {
                    let message = format!("a side of the picture, {width} by {height} pixels, would shrink to none");
                    return Err(RowError::new("media_size", format!("{message}; cut it into several")));
                }
                let grid = [1, rows, columns];
                FeaturePlan { features, grid, patches: features * merge * merge, tile_features: columns }
            }
            Self::Fit { tile, max_tiles, features, patches, largest } => {
                let (rows, columns) = fit(height, width, tile, max_tiles, largest);
                let (tiles, grid) =
                    if rows * columns > 1 { (rows * columns + 1, [rows, columns]) } else { (1, [0, 0]) };
                FeaturePlan {
                    features: tiles * features,
                    grid: [tiles, grid[0], grid[1]],
                    patches: tiles * patches,
                    tile_features: features,
                }
            }
            Self::Spectrum { .. } => {
                return Err(RowError::new("media", "the family's rule counts no pictures; report this".to_owned()));
            }
            Self::Tiles { tile, longest_edge, features, patches, split } => {
                let (rows, columns) = if split { tile_grid(height, width, tile, longest_edge) } else { (0, 0) };
                let tiles = rows * columns + 1;
                let grid = [tiles, rows, columns];
                FeaturePlan { features: tiles * features, grid, patches: tiles * patches, tile_features: features }
            }
        })
    }
}

/// Features of a sound: windows, half of them after the convolution, half of these after pooling.
///
/// Samples at another rate are `ceil(samples * rate / own)` after resampling. Source: `processing_qwen2_audio.py`.
fn spectrum(samples: u32, own: u32, [rate, hop, most]: [u32; 3]) -> Result<FeaturePlan, RowError> {
    let heard = (u64::from(samples) * u64::from(rate)).div_ceil(u64::from(own));
    if heard > u64::from(most) {
        let (length, limit) = (heard as f64 / f64::from(rate), f64::from(most) / f64::from(rate));
        let message = format!("the sound has {length:.1} s, the model hears {limit:.0} s; cut it into several");
        return Err(RowError::new("media_too_long", message));
    }
    let windows = heard.div_ceil(u64::from(hop)) as usize;
    let convolved = windows.saturating_sub(1) / 2 + 1;
    if convolved < 2 {
        let message = format!("the sound has {heard} samples at {rate} a second, too few for one token; leave it out");
        return Err(RowError::new("media_too_short", message));
    }
    let features = (convolved - 2) / 2 + 1;
    Ok(FeaturePlan { features, grid: [windows, 1, 1], patches: convolved, tile_features: features })
}

fn rounded(value: f64) -> usize {
    value.round_ties_even() as usize
}

/// Height and width as whole cells of `cell` pixels with an area between the bounds. Source: `smart_resize` of Qwen2-VL's
/// image processor, and of GLM-4V's.
fn smart_size(
    height: usize,
    width: usize,
    cell: usize,
    bounds: [usize; 2],
    frames: usize,
    enlarge: bool,
) -> Result<(usize, usize), RowError> {
    let (mut h, mut w) = (height as f64, width as f64);
    let size = cell as f64;
    if enlarge && (height < cell || width < cell) {
        let scale = (size / h).max(size / w);
        (h, w) = ((h * scale).floor(), (w * scale).floor());
    }
    if h.max(w) / h.min(w) > 200.0 {
        let message = format!("the picture has {width} by {height} pixels; the family takes at most 200 to 1");
        return Err(RowError::new("media_size", message));
    }
    let [least, most] = bounds.map(|bound| bound as f64);
    let t = frames as f64;
    let (rows, columns) = (rounded(h / size) * cell, rounded(w / size) * cell);
    let area = t * rows as f64 * columns as f64;
    let cells = |value: f64, whole: fn(f64) -> f64| whole(value) as usize * cell;
    Ok(if area > most {
        let beta = (t * h * w / most).sqrt();
        (cells(h / beta / size, f64::floor).max(cell), cells(w / beta / size, f64::floor).max(cell))
    } else if area < least {
        let beta = (least / (t * h * w)).sqrt();
        (cells(h * beta / size, f64::ceil), cells(w * beta / size, f64::ceil))
    } else {
        (rows, columns)
    })
}

/// Columns and rows of tiles. Source: `get_optimal_tiled_canvas` of GOT-OCR2's and `InternVL`'s image processor.
fn canvas(height: usize, width: usize, tile: usize, least: usize, most: usize) -> (usize, usize) {
    let mut grids: Vec<(usize, usize)> = (1..=most).flat_map(|a| (1..=most).map(move |b| (a, b))).collect();
    grids.retain(|(a, b)| (least..=most).contains(&(a * b)));
    grids.sort_by_key(|(a, b)| a * b); // stable, as Python's
    let aspect = width as f64 / height as f64;
    let (mut best, mut least_difference) = ((1, 1), f64::INFINITY);
    for (a, b) in grids {
        let difference = (aspect - a as f64 / b as f64).abs();
        let is_large = (width * height) as f64 > 0.5 * (tile * tile * a * b) as f64;
        if difference < least_difference {
            (least_difference, best) = (difference, (a, b));
        } else if difference.to_bits() == least_difference.to_bits() && is_large {
            best = (a, b);
        }
    }
    best
}

/// Rows and columns of cells. Source: `get_resize_output_image_size` of Pixtral's image processor.
fn cover(height: usize, width: usize, cell: usize, longest: usize) -> (usize, usize) {
    let (h, w) = (height as f64, width as f64);
    let ratio = (h / longest as f64).max(w / longest as f64);
    let shrunk = |side: usize, exact: f64| if ratio > 1.0 { (exact / ratio).floor() as usize } else { side };
    // Python's (0 - 1) // cell + 1 is 0
    (shrunk(height, h).div_ceil(cell), shrunk(width, w).div_ceil(cell))
}

/// Rows and columns of tiles. Source: `get_best_fit` of Llama 4's image processor, which reckons in float32.
fn fit(height: usize, width: usize, tile: usize, most: usize, largest: bool) -> (usize, usize) {
    let mut ratios: Vec<(f64, Vec<(usize, usize)>)> = vec![];
    for tiles in (1..=most).rev() {
        for rows in (1..=tiles).filter(|rows| tiles % rows == 0) {
            let grid = (rows, tiles / rows);
            let ratio = grid.0 as f64 / grid.1 as f64;
            match ratios.iter_mut().find(|(known, _)| known.to_bits() == ratio.to_bits()) {
                Some((_, grids)) => grids.push(grid),
                None => ratios.push((ratio, vec![grid])),
            }
        }
    }
    let grids: Vec<(usize, usize)> = ratios.into_iter().flat_map(|(_, grids)| grids).collect();
    let scale_of = |&(rows, columns): &(usize, usize)| {
        let (down, across) = ((rows * tile) as f32 / height as f32, (columns * tile) as f32 / width as f32);
        down.min(across)
    };
    let enlarging = grids.iter().map(scale_of).filter(|scale| *scale >= 1.0);
    let shrinking = grids.iter().map(scale_of).filter(|scale| *scale < 1.0);
    let chosen = if largest { enlarging.reduce(f32::max) } else { enlarging.reduce(f32::min) };
    let chosen = chosen.or_else(|| shrinking.reduce(f32::max));
    let fitting = grids.iter().filter(|grid| Some(scale_of(grid)) == chosen);
    fitting.min_by_key(|(rows, columns)| rows * columns).copied().unwrap_or((1, 1))
}

/// The size that keeps most pixels of the picture and wastes least. Source: `select_best_resolution` of transformers.
fn best_size(height: usize, width: usize, sizes: &[(usize, usize)]) -> (usize, usize) {
    let (mut best, mut most_kept, mut least_wasted) = ((0, 0), 0, usize::MAX);
    for &(h, w) in sizes {
        let scale = (w as f64 / width as f64).min(h as f64 / height as f64);
        let (inner_w, inner_h) = ((width as f64 * scale) as usize, (height as f64 * scale) as usize);
        let kept = (inner_w * inner_h).min(width * height);
        let wasted = h * w - kept;
        if kept > most_kept || kept == most_kept && wasted < least_wasted {
            (best, most_kept, least_wasted) = ((h, w), kept, wasted);
        }
    }
    best
}

/// Features of the tiles without those of padding, one more for each row's end, and those of the whole picture. Source:
/// `_get_unpadded_features` of LLaVA-NeXT's processor, and of LLaVA-OneVision's.
fn unpadded(
    height: usize,
    width: usize,
    (tile_rows, tile_columns): (usize, usize),
    cells: usize,
    most_tiles: Option<usize>,
) -> usize {
    let (mut rows, mut columns) = (cells * tile_rows, cells * tile_columns);
    let (h, w) = (height as f64, width as f64);
    // Python's round(x, 7), then int()
    let inner = |value: f64| ((value * 1e7).round_ties_even() / 1e7) as usize;
    if w / h > columns as f64 / rows as f64 {
        let new = inner(h * (columns as f64 / w));
        rows -= (rows - new.min(rows)) / 2 * 2;
    } else {
        let new = inner(w * (rows as f64 / h));
        columns -= (columns - new.min(columns)) / 2 * 2;
    }
    let whole = cells * cells;
    let ratio = most_tiles.map_or(0.0, |most| ((rows * columns) as f64 / (most * whole) as f64).sqrt());
    if ratio > 1.1 {
        // Python's //, which is exact where a division is rounded up to a whole number
        let floored = |side: usize| ((side as f64 - side as f64 % ratio) / ratio).round() as usize;
        (rows, columns) = (floored(rows), floored(columns));
    }
    rows * columns + rows + whole
}

/// Rows and columns of tiles; none for a picture that is not cut. Source: Idefics3's image processor.
fn tile_grid(height: usize, width: usize, tile: usize, longest: usize) -> (usize, usize) {
    const MOST: usize = 4096;
    let even = |side: usize| side + side % 2;
    let aspect = width as f64 / height as f64;
    let (h, w) = if width >= height {
        (even((longest as f64 / aspect) as usize), longest)
    } else {
        (longest, even((longest as f64 * aspect) as usize))
    };
    let (mut h, mut w) = (h.max(1), w.max(1));
    let aspect = w as f64 / h as f64;
    if w >= h && w > MOST {
        (h, w) = ((MOST as f64 / aspect) as usize, MOST);
    } else if h > w && h > MOST {
        (h, w) = (MOST, (MOST as f64 * aspect) as usize);
    }
    let (h, w) = (h.max(1), w.max(1));
    let aspect = w as f64 / h as f64;
    let whole = |side: usize| side.div_ceil(tile) * tile;
    let (h, w) = if w >= h {
        (whole((whole(w) as f64 / aspect) as usize), whole(w))
    } else {
        (whole(h), whole((whole(h) as f64 * aspect) as usize))
    };
    if h <= tile && w <= tile { (0, 0) } else { (h.div_ceil(tile), w.div_ceil(tile)) }
}

#[cfg(test)]
mod tests {
    use super::Rule;

    #[test]
    fn thinning_rounds_down_where_a_division_is_rounded_up() {
        let sizes = (1..=6).flat_map(|a| (1..=6).map(move |b| (a * 384, b * 384))).collect();
        let rule = Rule::Pinpoints { side: 384, cells: 27, sizes, most_tiles: Some(9), alone_only: true, extra: 0 };
        // as LLaVA-OneVision's processor of transformers 5.23 counts
        assert_eq!(rule.plan(1169, 955, 1).map(|plan| plan.features), Ok(7226));
        assert_eq!(rule.plan(480, 640, 1).map(|plan| plan.features), Ok(2929));
    }
}
