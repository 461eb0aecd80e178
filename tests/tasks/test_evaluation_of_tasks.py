"""tools/test.py --task: the measures of a task's own checkpoint."""

import re

from mmengine.runner import Runner

from mmseg_eomt.commands import toolbox

pytest_plugins = ['small_tasks']


def test_a_task_is_evaluated_by_its_name(in_process, tasks_config, small_config, config_file, checkpoints):
    options = {'model.test_cfg.mode': 'whole'}
    expected = Runner.from_cfg(small_config(load_from=checkpoints['day'], name='alone', **options)).test()
    config = tasks_config(
        day=dict(checkpoint=checkpoints['day'], config=str(config_file(small_config(name='own')))), dusk=checkpoints['dusk']
    )
    file = config_file(config)
    log = in_process(toolbox.evaluate, file, '--task', 'day', '--cfg-options', 'experiment_name=evaluated_task')
    found = re.findall(r'Iter\(test\) .* mIoU: (\S+)', log)[-1]
    assert float(found) == expected['mIoU']
    assert "no task 'night': the tasks are day, dusk" in in_process(toolbox.evaluate, file, '--task', 'night', check=False)
