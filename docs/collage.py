"""Makes docs/collage.png, the picture of the README, from pictures of the tutorials: python docs/collage.py."""

from pathlib import Path

from PIL import Image

DOCS = Path(__file__).resolve().parent
WIDTH, GAP = 1440, 16
ROWS = [
    ["13_diffusion_4", "10_change_of_variables_2"],
    ["15_diffusion_prior_2", "19_refused_fit_1"],
    ["14_flow_matching_1", "06_wasserstein_2"],
]


def main() -> None:
    rows = []
    for names in ROWS:
        pictures = [Image.open(DOCS / "tutorials" / f"{name}.png").convert("RGB") for name in names]
        shapes = [picture.width / picture.height for picture in pictures]
        height = round((WIDTH - GAP * (len(names) - 1)) / sum(shapes))
        rows.append(
            [picture.resize((int(height * shape), height)) for picture, shape in zip(pictures, shapes, strict=True)]
        )
    canvas = Image.new("RGB", (WIDTH, sum(row[0].height + GAP for row in rows) - GAP), "white")
    top = 0
    for row in rows:
        left = 0
        for picture in row:
            canvas.paste(picture, (left, top))
            left += picture.width + GAP
        top += row[0].height + GAP
    canvas.quantize(128).save(DOCS / "collage.png", optimize=True)


if __name__ == "__main__":
    main()
