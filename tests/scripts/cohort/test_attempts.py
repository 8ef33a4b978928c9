import subprocess
import sys
import time
from pathlib import Path

import cloudpickle


def test_process_of_a_crashing_case_ends_with_its_worker():
    task = cloudpickle.dumps((cloudpickle.dumps(lambda case: time.sleep(300)), {}))
    command, processes = [sys.executable, "-m", "scripts.cohort.attempts"], []
    for sent in (task, task[:50]):
        process = subprocess.Popen(command, stdin=subprocess.PIPE, cwd=Path(__file__).parents[3])
        process.stdin.write(len(task).to_bytes(8) + sent)
        process.stdin.close()
        processes.append(process)
    assert [process.wait(60) for process in processes] == [1, 1]
