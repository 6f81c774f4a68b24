"""Put what `thinslice evaluate` measured onto a card: `python benchmarks/score_card.py results.jsonl CARD.json`.

Per condition: mean PSNR of the model with projection, its mean and smallest gain over projected cubic, mean SSIM gain.
"""

import json
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np


def main() -> int:
    results, card_path = map(Path, sys.argv[1:3])
    card = json.loads(card_path.read_text())
    scores = defaultdict(dict)
    for line in results.read_text().splitlines():
        record = json.loads(line)
        if record["kind"] == "score" and record["projection"] and is_protocol(record["condition"]):
            condition = "x{factor:g} {profile}, thickness {thickness_over_spacing:g}".format(**record["condition"])
            scores[condition].setdefault(record["model"], {})[record["case"], record["axis"]] = record
    card["scores"] = {condition: summary(by_model, card["name"]) for condition, by_model in scores.items()}
    card_path.write_text(json.dumps(card, indent=2) + "\n")
    return 0


def is_protocol(condition: dict) -> bool:
    """Slices that nothing disturbs and of which the truth is stated; older files have no others."""
    return condition.get("stated", "true") == "true" and not any(
        condition.get(name) for name in ("noise_percent", "brightness_percent", "shift_px")
    )


def summary(by_model: dict, name: str) -> dict[str, float]:
    ours, cubic = by_model[name], by_model["cubic"]
    gains = [ours[case]["psnr_db"] - cubic[case]["psnr_db"] for case in ours]
    similarity = [ours[case]["ssim"] - cubic[case]["ssim"] for case in ours]
    return {
        "psnr_db": round(float(np.mean([ours[case]["psnr_db"] for case in ours])), 2),
        "gain_over_projected_cubic_db": round(float(np.mean(gains)), 2),
        "smallest_gain_db": round(min(gains), 2),
        "ssim_gain": round(float(np.mean(similarity)), 4),
    }


if __name__ == "__main__":
    sys.exit(main())
