import torch
import torch.distributed as dist
from ignite.engine import Engine

from scripts.training.running_statistics import AverageRunningStatistics

TWO_PROCESSES = 2


def _run(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=TWO_PROCESSES)
    network = torch.nn.BatchNorm1d(3)
    network.running_mean += rank
    engine = Engine(lambda *_: network(torch.full((2, 3), 10.0 * rank)))
    AverageRunningStatistics(network).attach(engine)
    engine.run([0], epoch_length=1)
    torch.save(network.state_dict(), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_processes_end_an_epoch_with_the_mean_of_their_statistics(tmp_path):
    torch.multiprocessing.spawn(_run, (str(tmp_path),), nprocs=TWO_PROCESSES)
    states = [torch.load(tmp_path / f"{rank}.pt") for rank in range(TWO_PROCESSES)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    own_means = [0.9 * rank + 0.1 * 10 * rank for rank in range(TWO_PROCESSES)]
    torch.testing.assert_close(states[0]["running_mean"], torch.full((3,), sum(own_means) / TWO_PROCESSES))


def test_single_process_keeps_its_own():
    network = torch.nn.BatchNorm1d(3)
    AverageRunningStatistics(network)(None)
    assert network.running_mean.tolist() == [0, 0, 0]
