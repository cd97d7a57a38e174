#!/usr/bin/env bash
# Builds models/demo from nothing: corpus, tokenizer, training, export, evaluation. Goes on where it was interrupted
# (what is done is kept in build/demo-model). Needs ./run.sh --build-only before it, a network, 6 GB of disk, and
# the time it is given for training.
#   tools/demo-model/build.sh --minutes 100     trains for 100 minutes in all (on a GPU 8 are plenty)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
if [ $# -ne 2 ] || [ "$1" != --minutes ]; then
  sed -n '2,5s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
minutes=$2
work=build/demo-model venv=build/oracle-venv here=tools/demo-model model=models/demo
mkdir -p $work

if [ ! -f $venv/ready-demo ]; then
  python3 -m venv $venv
  $venv/bin/pip install -q -r tools/oracle/requirements.txt -r $here/requirements.txt
  touch $venv/ready $venv/ready-demo
fi
python=$venv/bin/python

[ -f $work/sources.json ] || $python $here/corpus.py $work
[ -f $work/train.bin ] || $python $here/tokens.py $work
if [ ! -f $work/final.pt ]; then
  # glibc would give every large tensor's pages back and take them again; and threads that spin for ever at barriers
  # stop everything when another program wants a core.
  MALLOC_MMAP_THRESHOLD_=8589934592 MALLOC_TRIM_THRESHOLD_=34359738368 GOMP_SPINCOUNT=20000 \
    $python $here/train.py $work --minutes "$minutes"
fi
$python $here/export.py $work $model
$python $here/heldout.py $work $model
cp $work/sources.json $model/sources.json
$python $here/evaluate.py $work $model
$python $here/completions.py $work $model > docs/demo-model-completions.md
build/release/bin/stoker trace record $model --text $model/heldout.txt --out $work/routing.trace
build/release/bin/stoker trace report $work/routing.trace
