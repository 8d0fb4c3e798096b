drop materialized view @extschema@.monthly_usage_summary;
drop view if exists @extschema@.current_day_usage;
drop view if exists @extschema@.usage_by_month;
drop view if exists @extschema@.usage_metrics;
drop table @extschema@.model_prices;
drop table @extschema@.usage_months;
drop table @extschema@.usage_totals;
drop table @extschema@.usage_days;
drop table @extschema@.usage_events;
