# The anomaly demo's base model: that of eomt_demo.py, on data of its own.
_base_ = 'eomt_demo.py'
data_root = 'data/street_anomalies'
train_dataloader = dict(dataset=dict(data_root=data_root))
val_dataloader = dict(dataset=dict(data_root=data_root))
test_dataloader = val_dataloader
