// Colours of instances and categories. A category has the colour that drawn pictures give it (maskrcnn_core.drawing).

const GOLDEN = 0.6180339887; // steps of the golden ratio keep the hues of near numbers far apart

export function categoryColour(id) {
  return rgb(remainder(0.952 + id * GOLDEN, 1), [0.58, 0.52, 0.66][remainder(id, 3)], 0.92);
}

export function instanceColour(number) {
  return rgb(remainder(0.53 + number * GOLDEN, 1), [0.56, 0.64, 0.5][number % 3], 0.86);
}

/** Black or white, whichever reads better on the colour (WCAG's contrast of two luminances). */
export function inkOn([red, green, blue]) {
  const linear = (value) => (value <= 10 ? value / 255 / 12.92 : ((value / 255 + 0.055) / 1.055) ** 2.4);
  const luminance = 0.2126 * linear(red) + 0.7152 * linear(green) + 0.0722 * linear(blue);
  return luminance > 0.179 ? "#000" : "#fff";
}

export function css([red, green, blue]) {
  return `rgb(${red} ${green} ${blue})`;
}

function remainder(value, divisor) {
  return ((value % divisor) + divisor) % divisor;
}

function rgb(hue, lightness, saturation) {
  const high = lightness <= 0.5 ? lightness * (1 + saturation) : lightness + saturation - lightness * saturation;
  const low = 2 * lightness - high;
  return [hue + 1 / 3, hue, hue - 1 / 3].map((shifted) => {
    const place = remainder(shifted, 1);
    if (place < 1 / 6) return Math.round(255 * (low + (high - low) * place * 6));
    if (place < 1 / 2) return Math.round(255 * high);
    if (place < 2 / 3) return Math.round(255 * (low + (high - low) * (2 / 3 - place) * 6));
    return Math.round(255 * low);
  });
}
