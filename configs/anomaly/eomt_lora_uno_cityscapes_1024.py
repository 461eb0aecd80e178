# UNO with LoRA: outliers, in every image, are a class of their own that is learned and never predicted; no other loss.
_base_ = 'eomt_lora_rba_cityscapes_1024.py'
model = dict(decode_head=dict(negative_class=True, loss_outlier=None))
paste_outliers = dict(_base_.paste_outliers, prob=1.0)
train_pipeline = [*_base_.train_pipeline[:2], paste_outliers, *_base_.train_pipeline[3:]]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
